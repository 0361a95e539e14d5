//! A driver that counts what is asked of another one, and fails for good when told to.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sidereal::device::cuda::driver::*;
use sidereal::{Error, Result};

/// What has been asked for.
#[derive(Default)]
pub struct Counts {
    /// Launches, those of replayed graphs not among them.
    pub launches: AtomicUsize,
    /// Graphs replayed.
    pub replays: AtomicUsize,
    /// Graphs freed.
    pub forgotten: AtomicUsize,
    /// Times that the host waited for the device.
    pub waits: AtomicUsize,
    /// Waits from which on every call fails; 0: never.
    pub broken_at: AtomicUsize,
    /// What memory was allocated for, since it was last looked at.
    pub purposes: Mutex<Vec<&'static str>>,
}

/// The driver.
pub struct Spy {
    /// Who does the work.
    pub inner: Box<dyn Driver>,
    /// What has been asked for.
    pub counts: Arc<Counts>,
}

impl Spy {
    fn sound(&self) -> Result<&Counts> {
        let broken = self.counts.broken_at.load(Ordering::Relaxed);
        if broken > 0 && self.counts.waits.load(Ordering::Relaxed) >= broken {
            return Err(Error::Device("an illegal memory access, says the spy".to_owned()));
        }
        Ok(&self.counts)
    }

    fn count(&self, which: impl Fn(&Counts) -> &AtomicUsize) -> Result<()> {
        which(&self.counts).fetch_add(1, Ordering::Relaxed);
        self.sound().map(|_| ())
    }
}

impl Driver for Spy {
    fn properties(&self) -> &Properties {
        self.inner.properties()
    }
    fn free_memory(&mut self) -> Result<u64> {
        self.inner.free_memory()
    }
    fn allocate(&mut self, purpose: &'static str, sizes: &[usize]) -> Result<Vec<DevicePtr>> {
        self.counts.purposes.lock().unwrap().push(purpose);
        self.inner.allocate(purpose, sizes)
    }
    fn free(&mut self, first: DevicePtr) -> Result<()> {
        self.inner.free(first)
    }
    fn pin(&mut self, bytes: usize) -> Result<Pinned> {
        self.inner.pin(bytes)
    }
    fn copy_in(&mut self, to: DevicePtr, from: &Pinned, range: Range<usize>) -> Result<()> {
        self.sound()?;
        self.inner.copy_in(to, from, range)
    }
    fn copy_out(&mut self, to: &Pinned, at: usize, from: DevicePtr, bytes: usize) -> Result<()> {
        self.sound()?;
        self.inner.copy_out(to, at, from, bytes)
    }
    fn copy(&mut self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.sound()?;
        self.inner.copy(to, from, bytes)
    }
    fn fill(&mut self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        self.sound()?;
        self.inner.fill(to, byte, bytes)
    }
    fn kernel(&mut self, name: &str) -> Result<Kernel> {
        self.inner.kernel(name)
    }
    fn launch(&mut self, launch: &Launch, args: &[u8]) -> Result<()> {
        self.count(|counts| &counts.launches)?;
        self.inner.launch(launch, args)
    }
    fn tensor_map(&mut self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.inner.tensor_map(spec)
    }
    fn begin_capture(&mut self) -> Result<()> {
        self.inner.begin_capture()
    }
    fn end_capture(&mut self) -> Result<Graph> {
        self.inner.end_capture()
    }
    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.count(|counts| &counts.replays)?;
        self.inner.replay(graph)
    }
    fn forget(&mut self, graph: Graph) -> Result<()> {
        self.count(|counts| &counts.forgotten)?;
        self.inner.forget(graph)
    }
    fn record(&mut self) -> Result<Event> {
        self.inner.record()
    }
    fn is_done(&mut self, event: Event) -> Result<bool> {
        self.inner.is_done(event)
    }
    fn wait(&mut self, event: Event, limit: Duration) -> Result<()> {
        self.count(|counts| &counts.waits)?;
        self.inner.wait(event, limit)
    }
    fn synchronize(&mut self) -> Result<()> {
        self.count(|counts| &counts.waits)?;
        self.inner.synchronize()
    }
    fn elapsed(&mut self, from: Event, to: Event) -> Result<Duration> {
        self.inner.elapsed(from, to)
    }
}
