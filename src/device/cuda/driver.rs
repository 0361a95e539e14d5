//! What the CUDA device asks of a driver: memory, copies, launches, graphs, events, on one stream.
//!
//! Two implement it: `real` on the CUDA driver, and [`emulated`](super::emulated), which runs the same kernel sources,
//! compiled by the host's C++ compiler. Everything is asynchronous and in stream order: a launch reads its arguments when it is
//! made, and memory when its turn comes. An error of a kernel is sticky: from then on every call fails with it.

use std::ops::Range;
use std::time::Duration;

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};

/// An address in device memory; 0 is nowhere.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// Nowhere: an absent optional argument.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    #[must_use]
    #[allow(clippy::should_implement_trait)] // like the method of pointers, and as with them the sum is in bytes of an address
    pub fn add(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// What a device is.
#[derive(Clone, Debug)]
pub struct Properties {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Compute capability: (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Most bytes of shared memory of one block.
    pub shared_per_block: u32,
    /// Bytes of the level-2 cache.
    pub l2: u64,
    /// Version of the driver: (13, 0).
    pub driver: (u32, u32),
    /// Whether the host runs the kernels.
    pub emulated: bool,
}

/// A kernel, resolved once by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(pub u32);

/// Where and how wide a kernel runs.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block; at most what the kernel was compiled for.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// May begin while its predecessor drains (programmatic dependent launch). The kernel calls `dependency_wait()` before
    /// it touches what an earlier launch wrote.
    pub dependent: bool,
}

/// A tiled two-dimensional view of device memory for bulk copies into shared memory (a TMA descriptor).
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TensorMap(pub [u64; 16]);

/// What a [`TensorMap`] is made from: a row-major matrix of 2-byte elements, cut into boxes with 128-byte swizzle.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapSpec {
    /// First element; a multiple of 16 bytes.
    pub base: DevicePtr,
    /// `[rows, columns]`. Elements beyond are read as zero.
    pub rows: u64,
    /// See `rows`.
    pub columns: u64,
    /// Bytes from row to row; a multiple of 16.
    pub stride: u64,
    /// Rows of a box, at most 256. A box is 64 columns (128 bytes) wide.
    pub box_rows: u32,
    /// Element type: bf16, else f16.
    pub bf16: bool,
}

/// Host memory that the device can copy from and to while the host goes on.
///
/// Whoever writes to it sees to it that no copy of it is under way: an [`Event`] recorded after the copy tells.
pub struct Pinned {
    at: *mut u8,
    len: usize,
    free: Option<Box<dyn FnOnce() + Send>>,
}

// SAFETY: the memory belongs to the value alone, and freeing it is a `Send` closure.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Takes over `len` bytes at `at`; `free` is called once, at the end.
    ///
    /// # Safety
    /// The bytes are initialised, valid until `free` is called, and referred to by nothing else on the host.
    pub(super) unsafe fn new(at: *mut u8, len: usize, free: Box<dyn FnOnce() + Send>) -> Pinned {
        Pinned { at, len, free: Some(free) }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as `new` was promised.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `new` was promised; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Address of the first byte.
    pub(super) fn address(&self) -> *mut u8 {
        self.at
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(free) = self.free.take() {
            free();
        }
    }
}

/// A place in the stream's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event(pub u64);

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub u32);

/// Memory, copies, launches, graphs and events of one device on one stream.
pub trait Driver: Send {
    /// What the device is.
    fn properties(&self) -> &Properties;

    /// Bytes of memory that are free now.
    fn free_memory(&mut self) -> Result<u64>;

    /// Allocates one arena for a purpose and returns one address per size, each a multiple of 256 (of 16 on the emulated device,
    /// where each buffer ends at a page that faults). Contents are undefined.
    ///
    /// # Errors
    /// [`Error::Device`] with what was needed and what is there.
    fn allocate(&mut self, purpose: &'static str, sizes: &[usize]) -> Result<Vec<DevicePtr>>;

    /// Frees an arena, named by its first address, once everything enqueued so far is done.
    fn free(&mut self, first: DevicePtr) -> Result<()>;

    /// Allocates pinned host memory, zeroed.
    fn pin(&mut self, bytes: usize) -> Result<Pinned>;

    /// Copies `from[range]` to the device, in stream order.
    fn copy_in(&mut self, to: DevicePtr, from: &Pinned, range: Range<usize>) -> Result<()>;

    /// Copies `bytes` from the device to `to[at..]`, in stream order.
    fn copy_out(&mut self, to: &Pinned, at: usize, from: DevicePtr, bytes: usize) -> Result<()>;

    /// Copies within the device, in stream order.
    fn copy(&mut self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()>;

    /// Sets `bytes` bytes, in stream order.
    fn fill(&mut self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()>;

    /// Finds a kernel by the name of its entry.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none of that name.
    fn kernel(&mut self, name: &str) -> Result<Kernel>;

    /// Enqueues a launch. `args` are the bytes of the kernel's argument struct, read now.
    ///
    /// # Errors
    /// [`Error::Device`] if the size of the struct is not the kernel's, or the launch is beyond what kernel or device allow.
    fn launch(&mut self, launch: &Launch, args: &[u8]) -> Result<()>;

    /// Describes a matrix for bulk copies.
    fn tensor_map(&mut self, spec: &TensorMapSpec) -> Result<TensorMap>;

    /// From now until [`Driver::end_capture`] launches and copies are recorded instead of enqueued.
    fn begin_capture(&mut self) -> Result<()>;

    /// Ends a recording.
    fn end_capture(&mut self) -> Result<Graph>;

    /// Enqueues a recording.
    fn replay(&mut self, graph: Graph) -> Result<()>;

    /// Frees a recording. What was enqueued of it still runs; its number may come back as another's.
    fn forget(&mut self, graph: Graph) -> Result<()>;

    /// Marks the present end of the stream.
    fn record(&mut self) -> Result<Event>;

    /// Whether everything before an event is done.
    fn is_done(&mut self, event: Event) -> Result<bool>;

    /// Waits until everything before an event is done; fails if something did, or after `limit`.
    fn wait(&mut self, event: Event, limit: Duration) -> Result<()>;

    /// Waits for everything.
    fn synchronize(&mut self) -> Result<()>;

    /// Device time between two events that are done, where the device can tell.
    fn elapsed(&mut self, from: Event, to: Event) -> Result<Duration>;

    /// Opens a named range for profilers; [`Driver::pop_range`] closes it.
    fn push_range(&mut self, _name: &'static str) {}

    /// Closes the innermost range.
    fn pop_range(&mut self) {}
}

impl dyn Driver + '_ {
    /// Enqueues a launch with a typed argument struct.
    ///
    /// # Errors
    /// Those of [`Driver::launch`].
    pub fn run<A: Pod>(&mut self, launch: &Launch, args: &A) -> Result<()> {
        self.launch(launch, bytemuck::bytes_of(args))
    }

    /// Copies `bytes` to the device through a pinned buffer of its own and waits (start-up, tests).
    ///
    /// # Errors
    /// The driver's.
    pub fn upload(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<()> {
        const CHUNK: usize = 16 << 20;
        let mut pinned = self.pin(bytes.len().min(CHUNK))?;
        for (at, chunk) in bytes.chunks(CHUNK).enumerate() {
            pinned.bytes_mut()[..chunk.len()].copy_from_slice(chunk);
            self.copy_in(to.add(at * CHUNK), &pinned, 0..chunk.len())?;
            self.synchronize()?;
        }
        Ok(())
    }

    /// Copies `bytes` from the device and waits (tests, evaluation).
    ///
    /// # Errors
    /// The driver's.
    pub fn download(&mut self, from: DevicePtr, bytes: usize) -> Result<Vec<u8>> {
        let pinned = self.pin(bytes)?;
        self.copy_out(&pinned, 0, from, bytes)?;
        self.synchronize()?;
        Ok(pinned.bytes().to_vec())
    }
}

/// A driver's recordings by number. The number of one that was forgotten comes back as another's.
pub(super) struct Recordings<G>(Vec<Option<G>>);

impl<G> Recordings<G> {
    pub fn new() -> Recordings<G> {
        Recordings(Vec::new())
    }

    pub fn keep(&mut self, recording: G) -> Graph {
        let at = self.0.iter().position(Option::is_none).unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[at] = Some(recording);
        Graph(at as u32)
    }

    pub fn get(&self, graph: Graph) -> Result<&G> {
        let recording = self.0.get(graph.0 as usize).and_then(Option::as_ref);
        recording.ok_or_else(|| failed(format_args!("there is no graph {}", graph.0)))
    }

    pub fn take(&mut self, graph: Graph) -> Result<G> {
        let recording = self.0.get_mut(graph.0 as usize).and_then(Option::take);
        recording.ok_or_else(|| failed(format_args!("there is no graph {}", graph.0)))
    }

    #[cfg(feature = "cuda")]
    pub fn iter(&self) -> impl Iterator<Item = &G> {
        self.0.iter().flatten()
    }
}

/// A device error.
pub(super) fn failed(what: impl std::fmt::Display) -> Error {
    Error::Device(what.to_string())
}
