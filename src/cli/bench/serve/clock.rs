//! Waiting to the microsecond, and the processor time that was used.

use std::time::{Duration, Instant};

/// The longest sleep in one piece: whoever waits looks up so often whether the run has been stopped.
pub const SLICE: Duration = Duration::from_millis(100);

/// A timer of its own for the sends of an open loop: those of the runtime are rounded up to milliseconds.
///
/// A timerfd is read and polled as a pipe is, and so the runtime takes it for one.
#[cfg(target_os = "linux")]
pub struct Timer {
    fd: tokio::net::unix::pipe::Receiver,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// Needs a runtime.
    pub fn new() -> std::io::Result<Timer> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Timer { fd: tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(fd)? })
    }

    /// Sleeps until a time, at most for [`SLICE`].
    pub async fn sleep_until(&mut self, due: Instant) -> std::io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let left = due.saturating_duration_since(Instant::now()).min(SLICE);
        if left.is_zero() {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: left.as_nanos() as _ },
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)?;
        loop {
            self.fd.readable().await?;
            match self.fd.try_read(&mut [0; 8]) {
                // Someone was told too early.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                read => return read.map(|_| ()),
            }
        }
    }
}

/// The runtime's timer.
#[cfg(not(target_os = "linux"))]
pub struct Timer;

#[cfg(not(target_os = "linux"))]
impl Timer {
    /// Cannot fail here.
    pub fn new() -> std::io::Result<Timer> {
        Ok(Timer)
    }

    /// Sleeps until a time, at most for [`SLICE`].
    pub async fn sleep_until(&mut self, due: Instant) -> std::io::Result<()> {
        tokio::time::sleep_until(due.min(Instant::now() + SLICE).into()).await;
        Ok(())
    }
}

/// Processor time of this process, where it is known.
pub fn processor_time() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Lets this process have as many open connections as the system allows without asking.
pub fn raise_open_files() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            // What is refused shows as connections that fail.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_end_behind_their_time_and_never_before() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut timer = Timer::new().unwrap();
            for us in [0u64, 1, 50, 300, 2000, 50] {
                let due = Instant::now() + Duration::from_micros(us);
                timer.sleep_until(due).await.unwrap();
                assert!(Instant::now() >= due, "{us}");
            }
            let begin = Instant::now();
            timer.sleep_until(begin + Duration::from_secs(3600)).await.unwrap();
            assert!((SLICE..Duration::from_secs(60)).contains(&begin.elapsed()));
        });
    }
}
