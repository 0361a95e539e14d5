//! Work that requests must not feel: verifying, merging.
//!
//! It runs on threads of its own, one for every four cores, on Linux at the lowest priority: requests keep the memory's bandwidth and the
//! caches as much as the cores, and whoever brings a snapshot can wait.

use std::sync::mpsc::channel;

use crate::catalog::Progress;
use crate::error::{Error, Result};

/// The lowest priority.
#[cfg(target_os = "linux")]
const NICE: i32 = 19;
/// Cores per thread.
const CORES: usize = 4;

/// Runs `work` in the background and waits for it; `progress` is called on this thread.
pub(super) fn run<T: Send>(
    progress: Progress<'_>,
    work: impl FnOnce(Progress<'_>) -> Result<T> + Send,
) -> Result<T> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads((cores / CORES).max(1))
        .thread_name(|at| format!("sidereal-background-{at}"))
        .start_handler(|_| lower_priority())
        .build()
        .map_err(|error| Error::Device(format!("no threads to work in the background: {error}")))?;
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            pool.install(|| {
                work(&mut |done, total| {
                    // The receiver is there until the sender is gone.
                    let _ = sender.send((done, total));
                })
            })
        });
        receiver.iter().for_each(|(done, total)| progress(done, total));
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn lower_priority() {
    // On Linux this concerns the calling thread alone; elsewhere it would be the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "background work keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_and_result_come_back() {
        let mut told = Vec::new();
        let result = run(&mut |done, total| told.push((done, total)), |progress| {
            (1..=3).for_each(|done| progress(done, 3));
            Ok(7)
        });
        assert_eq!((result.unwrap(), told), (7, vec![(1, 3), (2, 3), (3, 3)]));
        let failed: Result<()> = run(&mut |_, _| {}, |_| Err(Error::invalid("snapshot", "no")));
        assert_eq!(failed.unwrap_err().to_string(), "snapshot: no");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_background_is_slow() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let there = run(&mut |_, _| {}, |_| Ok(own())).unwrap();
        assert_eq!((there, own()), (NICE.max(before), before));
    }
}
