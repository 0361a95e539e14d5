//! A driver without a GPU: the kernels' own sources, compiled by the host's C++ compiler, a fiber per CUDA thread.
//!
//! Nothing runs when it is enqueued. Copies, fills and launches wait, launches with their argument bytes, until somebody waits for
//! them, so that whatever reads memory later than its writer thought shows: pinned memory filled again too early, buffers freed
//! or used again. Fresh memory is poison, every buffer ends at a page that faults (its start is therefore a multiple of 16 only),
//! and threads take turns in an order one can choose. What kernels do wrong comes back as an error that names kernel, block,
//! thread and place.
//!
//! The environment may choose too: `SIDEREAL_EMULATED_ORDER` (`forward`, `reverse`, `random`, `warps`, `warps-reverse`),
//! `SIDEREAL_EMULATED_ASYNC` (`late`, `early`), `SIDEREAL_EMULATED_SEED`, `SIDEREAL_EMULATED_THREADS`, and `SIDEREAL_HOST_KERNELS`, a shared
//! object whose kernels run instead of the built-in ones (sanitizers, deliberate mistakes).

mod library;
mod memory;
mod pinned;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::{
    DevicePtr, Driver, Event, Graph, Kernel, Launch, Pinned, Properties, Recordings, TensorMap,
    TensorMapSpec, failed,
};
use crate::error::{Error, Result};
use library::{HostError, HostLaunch, Library};
use memory::Memory;
use pinned::PinnedPool;

/// The order in which the threads of a block, and blocks, take turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By index.
    #[default]
    Forward,
    /// By falling index.
    Reverse,
    /// Drawn from the seed.
    Random,
    /// One warp as far as it can, then the next.
    Warps,
    /// The same from the last warp on.
    WarpsReverse,
}

/// When asynchronous copies and matrix products inside kernels take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completion {
    /// When somebody waits for them.
    #[default]
    Late,
    /// When they are issued.
    Early,
}

/// How the emulated device behaves.
#[derive(Clone, Debug)]
pub struct EmulatedOptions {
    /// Order of threads.
    pub order: Order,
    /// When asynchronous copies land.
    pub completion: Completion,
    /// Seed of [`Order::Random`].
    pub seed: u64,
    /// Operating-system threads per launch; 0: one per core.
    pub threads: u32,
    /// Multiprocessors it claims to have; few, so that grids sized by them stride.
    pub multiprocessors: u32,
    /// Bytes of memory it claims to have.
    pub memory: u64,
    /// A shared object of kernels instead of the built-in ones.
    pub kernels: Option<PathBuf>,
}

impl Default for EmulatedOptions {
    /// Forward, late, one thread per core, 3 multiprocessors, 8 GiB, built-in kernels.
    fn default() -> EmulatedOptions {
        EmulatedOptions {
            order: Order::Forward,
            completion: Completion::Late,
            seed: 1,
            threads: 0,
            multiprocessors: 3,
            memory: 8 << 30,
            kernels: None,
        }
    }
}

impl EmulatedOptions {
    /// The defaults, as far as the environment does not choose.
    ///
    /// # Errors
    /// [`Error::Device`] names a variable whose value is none of those it may have.
    pub fn from_environment() -> Result<EmulatedOptions> {
        let mut options = EmulatedOptions::default();
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let wrong = |name: &str, value: &str, allowed: &str| {
            failed(format_args!("{name}={value}: expected {allowed}"))
        };
        if let Some(value) = read("SIDEREAL_EMULATED_ORDER") {
            options.order = match value.as_str() {
                "forward" => Order::Forward,
                "reverse" => Order::Reverse,
                "random" => Order::Random,
                "warps" => Order::Warps,
                "warps-reverse" => Order::WarpsReverse,
                _ => {
                    let allowed = "forward, reverse, random, warps or warps-reverse";
                    return Err(wrong("SIDEREAL_EMULATED_ORDER", &value, allowed));
                }
            };
        }
        if let Some(value) = read("SIDEREAL_EMULATED_ASYNC") {
            options.completion = match value.as_str() {
                "late" => Completion::Late,
                "early" => Completion::Early,
                _ => return Err(wrong("SIDEREAL_EMULATED_ASYNC", &value, "late or early")),
            };
        }
        if let Some(value) = read("SIDEREAL_EMULATED_SEED") {
            options.seed = value.parse().map_err(|_| wrong("SIDEREAL_EMULATED_SEED", &value, "a number"))?;
        }
        if let Some(value) = read("SIDEREAL_EMULATED_THREADS") {
            options.threads =
                value.parse().map_err(|_| wrong("SIDEREAL_EMULATED_THREADS", &value, "a number"))?;
        }
        options.kernels = read("SIDEREAL_HOST_KERNELS").map(PathBuf::from);
        Ok(options)
    }
}

/// 64 bytes of arguments, aligned as a [`TensorMap`] among them wants.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

/// What waits in the stream.
#[derive(Clone)]
enum Op {
    CopyIn { to: DevicePtr, from: Range<usize> },
    CopyOut { to: Range<usize>, from: DevicePtr },
    Copy { to: DevicePtr, from: DevicePtr, bytes: usize },
    Fill { to: DevicePtr, byte: u8, bytes: usize },
    Launch { launch: Launch, args: Arc<[Line]> },
    Free(DevicePtr),
    Mark(Event),
}

/// The emulated device's driver.
pub struct EmulatedDriver {
    options: EmulatedOptions,
    properties: Properties,
    library: Library,
    memory: Memory,
    pinned: PinnedPool,
    queue: VecDeque<Op>,
    capture: Option<Vec<Op>>,
    graphs: Recordings<Vec<Op>>,
    /// When each event was reached.
    events: Vec<Option<Instant>>,
    error: Option<Error>,
}

impl EmulatedDriver {
    /// A device with nothing allocated.
    ///
    /// # Errors
    /// [`Error::File`] if the shared object of kernels cannot be used.
    pub fn new(options: EmulatedOptions) -> Result<EmulatedDriver> {
        let library = match &options.kernels {
            Some(path) => Library::load(path)?,
            None => Library::built_in(),
        };
        let properties = Properties {
            name: "emulated".to_string(),
            capability: (9, 0),
            multiprocessors: options.multiprocessors,
            memory: options.memory,
            shared_per_block: 232_448,
            l2: 50 << 20,
            driver: (13, 0),
            emulated: true,
        };
        Ok(EmulatedDriver {
            memory: Memory::new(options.memory),
            options,
            properties,
            library,
            pinned: PinnedPool::default(),
            queue: VecDeque::new(),
            capture: None,
            graphs: Recordings::new(),
            events: Vec::new(),
            error: None,
        })
    }

    /// The sticky error, if there is one.
    fn sound(&self) -> Result<()> {
        self.error.clone().map_or(Ok(()), Err)
    }

    /// The sticky error, or that a capture is under way, in which this call has no place.
    fn outside_capture(&self, what: &str) -> Result<()> {
        self.sound()?;
        match self.capture {
            Some(_) => Err(failed(format_args!("{what} during a capture"))),
            None => Ok(()),
        }
    }

    fn enqueue(&mut self, op: Op) {
        match &mut self.capture {
            Some(recorded) => recorded.push(op),
            None => self.queue.push_back(op),
        }
    }

    /// Does what waits, up to an event or to the end.
    fn run_until(&mut self, event: Option<Event>) -> Result<()> {
        let reached = |events: &[Option<Instant>]| event.is_some_and(|e| events[e.0 as usize].is_some());
        while !reached(&self.events) {
            let Some(op) = self.queue.pop_front() else { break };
            if let Err(error) = self.perform(op) {
                self.queue.clear();
                self.error = Some(error.clone());
                return Err(error);
            }
        }
        if self.queue.is_empty() {
            self.pinned.sweep();
        }
        Ok(())
    }

    fn perform(&mut self, op: Op) -> Result<()> {
        match op {
            Op::CopyIn { to, from } => {
                self.memory.check("copy to the device", to, from.len())?;
                self.pinned.check("copy to the device", from.clone())?;
                // SAFETY: both ranges were just found in memory that is ours and disjoint; whoever owns the pinned memory
                // promised not to write to it now.
                unsafe {
                    std::ptr::copy_nonoverlapping(from.start as *const u8, to.0 as *mut u8, from.len())
                };
            }
            Op::CopyOut { to, from } => {
                self.memory.check("copy from the device", from, to.len())?;
                self.pinned.check("copy from the device", to.clone())?;
                // SAFETY: as above, the other way round.
                unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, to.start as *mut u8, to.len()) };
            }
            Op::Copy { to, from, bytes } => {
                self.memory.check("copy on the device (to)", to, bytes)?;
                self.memory.check("copy on the device (from)", from, bytes)?;
                // SAFETY: both ranges were just found in live buffers; they may overlap.
                unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, bytes) };
            }
            Op::Fill { to, byte, bytes } => {
                self.memory.check("fill", to, bytes)?;
                // SAFETY: the range was just found in a live buffer.
                unsafe { std::ptr::write_bytes(to.0 as *mut u8, byte, bytes) };
            }
            Op::Launch { launch, args } => self.run_launch(&launch, &args)?,
            Op::Free(first) => self.memory.release(first),
            Op::Mark(event) => self.events[event.0 as usize] = Some(Instant::now()),
        }
        Ok(())
    }

    fn run_launch(&self, launch: &Launch, args: &[Line]) -> Result<()> {
        let host = HostLaunch {
            kernel: launch.kernel.0,
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            dependent: u32::from(launch.dependent),
            order: self.options.order as u32,
            early: u32::from(self.options.completion == Completion::Early),
            os_threads: self.options.threads,
            seed: self.options.seed,
            args: args.as_ptr().cast(),
        };
        let name = &self.library.entries[launch.kernel.0 as usize].name;
        // SAFETY: `launch` checked all of this before it enqueued the launch.
        unsafe { self.library.run(&host) }.map_err(|error| failed(self.sentence(name, &error)))?;
        self.memory.check_ends().map_err(|error| failed(format_args!("kernel {name}: {error}")))
    }

    fn sentence(&self, kernel: &str, error: &HostError) -> String {
        let [x, y, z] = error.block;
        let who = match error.in_kernel {
            0 => String::new(),
            _ => format!(", block ({x}, {y}, {z}), thread {}", error.thread),
        };
        let what = match error.code {
            2 => format!("access out of range: {}, after this place", self.memory.describe(error.address)),
            _ => error.message(),
        };
        format!("kernel {kernel}{who}: {what} ({})", error.place())
    }

    /// Fails unless the kernel and the device allow this launch.
    fn check_launch(&self, launch: &Launch, args: &[u8]) -> Result<()> {
        let Some(entry) = self.library.entries.get(launch.kernel.0 as usize) else {
            return Err(failed(format_args!("there is no kernel {}", launch.kernel.0)));
        };
        let refuse =
            |what: std::fmt::Arguments<'_>| Err(failed(format_args!("kernel {}: {what}", entry.name)));
        let [x, y, z] = launch.grid;
        if args.len() != entry.args_bytes as usize {
            return refuse(format_args!("{} bytes of arguments; it takes {}", args.len(), entry.args_bytes));
        }
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return refuse(format_args!("a grid of {x} x {y} x {z} blocks"));
        }
        if launch.threads == 0 || !launch.threads.is_multiple_of(32) || launch.threads > entry.threads {
            let most = entry.threads;
            return refuse(format_args!(
                "{} threads; it takes whole warps, at most {most} threads",
                launch.threads
            ));
        }
        if launch.shared > self.properties.shared_per_block {
            let most = self.properties.shared_per_block;
            return refuse(format_args!(
                "{} bytes of shared memory; a block has at most {most}",
                launch.shared
            ));
        }
        Ok(())
    }
}

impl Driver for EmulatedDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&mut self) -> Result<u64> {
        self.sound()?;
        Ok(self.memory.free_bytes())
    }

    fn allocate(&mut self, purpose: &'static str, sizes: &[usize]) -> Result<Vec<DevicePtr>> {
        self.outside_capture("allocate")?;
        self.memory.allocate(purpose, sizes)
    }

    fn free(&mut self, first: DevicePtr) -> Result<()> {
        self.outside_capture("free")?;
        if !self.memory.is_arena(first)
            || self.queue.iter().any(|op| matches!(op, Op::Free(f) if *f == first))
        {
            return Err(failed(format_args!(
                "free: no arena in use begins at {}",
                self.memory.describe(first.0)
            )));
        }
        self.memory.discount(first);
        self.enqueue(Op::Free(first));
        Ok(())
    }

    fn pin(&mut self, bytes: usize) -> Result<Pinned> {
        self.sound()?;
        Ok(self.pinned.pin(bytes))
    }

    fn copy_in(&mut self, to: DevicePtr, from: &Pinned, range: Range<usize>) -> Result<()> {
        self.sound()?;
        if range.start > range.end || range.end > from.bytes().len() {
            return Err(failed(format_args!(
                "copy to the device: {range:?} of {} pinned bytes",
                from.bytes().len()
            )));
        }
        self.memory.check("copy to the device", to, range.len())?;
        let at = from.address() as usize;
        self.enqueue(Op::CopyIn { to, from: at + range.start..at + range.end });
        Ok(())
    }

    fn copy_out(&mut self, to: &Pinned, at: usize, from: DevicePtr, bytes: usize) -> Result<()> {
        self.sound()?;
        if at.checked_add(bytes).is_none_or(|end| end > to.bytes().len()) {
            let all = to.bytes().len();
            return Err(failed(format_args!(
                "copy from the device: {bytes} bytes to byte {at} of {all} pinned bytes"
            )));
        }
        self.memory.check("copy from the device", from, bytes)?;
        let start = to.address() as usize + at;
        self.enqueue(Op::CopyOut { to: start..start + bytes, from });
        Ok(())
    }

    fn copy(&mut self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.sound()?;
        self.memory.check("copy on the device (to)", to, bytes)?;
        self.memory.check("copy on the device (from)", from, bytes)?;
        self.enqueue(Op::Copy { to, from, bytes });
        Ok(())
    }

    fn fill(&mut self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        self.sound()?;
        self.memory.check("fill", to, bytes)?;
        self.enqueue(Op::Fill { to, byte, bytes });
        Ok(())
    }

    fn kernel(&mut self, name: &str) -> Result<Kernel> {
        self.library.find(name).map(Kernel)
    }

    fn launch(&mut self, launch: &Launch, args: &[u8]) -> Result<()> {
        self.sound()?;
        self.check_launch(launch, args)?;
        let lines = args.chunks(64).map(|chunk| {
            let mut line = Line([0; 64]);
            line.0[..chunk.len()].copy_from_slice(chunk);
            line
        });
        let args = lines.collect();
        self.enqueue(Op::Launch { launch: *launch, args });
        Ok(())
    }

    fn tensor_map(&mut self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.sound()?;
        let &TensorMapSpec { base, rows, columns, stride, box_rows, bf16 } = spec;
        let aligned = base.0.is_multiple_of(16) && stride.is_multiple_of(16);
        let sized = rows > 0 && columns > 0 && rows.max(columns) <= 1 << 32 && stride < 1 << 40;
        if !aligned || !sized || stride < columns * 2 || !(1..=256).contains(&box_rows) {
            return Err(failed(format_args!("no tensor map of this shape: {spec:?}")));
        }
        self.memory.check("tensor map", base, ((rows - 1) * stride + columns * 2) as usize)?;
        // The layout is that of `HostTensorMap` in kernels/host/hopper.cpp.
        let mut words = [0; 16];
        words[..7].copy_from_slice(&[
            0x7e45_0a3a,
            base.0,
            rows,
            columns,
            stride,
            u64::from(box_rows),
            u64::from(bf16),
        ]);
        Ok(TensorMap(words))
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.outside_capture("a capture")?;
        self.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph> {
        self.sound()?;
        let recorded =
            self.capture.take().ok_or_else(|| failed("the end of a capture that did not begin"))?;
        Ok(self.graphs.keep(recorded))
    }

    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.outside_capture("a replay")?;
        self.queue.extend(self.graphs.get(graph)?.iter().cloned());
        Ok(())
    }

    fn forget(&mut self, graph: Graph) -> Result<()> {
        self.outside_capture("the end of a graph")?;
        self.graphs.take(graph).map(drop)
    }

    fn record(&mut self) -> Result<Event> {
        self.outside_capture("an event")?;
        let event = Event(self.events.len() as u64);
        self.events.push(None);
        self.enqueue(Op::Mark(event));
        Ok(event)
    }

    fn is_done(&mut self, event: Event) -> Result<bool> {
        self.wait(event, Duration::MAX)?;
        Ok(true)
    }

    /// Does what waits before the event; the limit is not looked at, since nothing is under way while nobody waits.
    fn wait(&mut self, event: Event, _limit: Duration) -> Result<()> {
        self.outside_capture("waiting")?;
        if event.0 as usize >= self.events.len() {
            return Err(failed(format_args!("there is no event {}", event.0)));
        }
        self.run_until(Some(event))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.outside_capture("waiting")?;
        self.run_until(None)
    }

    fn elapsed(&mut self, from: Event, to: Event) -> Result<Duration> {
        self.sound()?;
        let at = |event: Event| self.events.get(event.0 as usize).copied().flatten();
        match (at(from), at(to)) {
            (Some(from), Some(to)) => Ok(to.saturating_duration_since(from)),
            _ => Err(failed("the time between events that are not done")),
        }
    }
}
