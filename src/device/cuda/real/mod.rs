//! The driver on a GPU: NVIDIA's driver library, loaded at run time.
//!
//! One stream of its own, one arena per purpose, code that was compiled ahead. The library is asked for before anything else, so that a
//! machine without it gets a sentence. After a fault of the device every call fails with the first fault's words. Nothing here waits
//! without a limit, so a kernel that hangs becomes an error too; what it holds is then never freed, since freeing would wait for it.
//!
//! `SIDEREAL_CUDA_SEPARATE=1` gives every buffer an allocation of its own, so that compute-sanitizer sees an access beyond one.
//! `SIDEREAL_CUDA_WAIT=SECONDS` is how long a synchronization waits before it calls the device hung (300).

mod library;
mod modules;
mod profiler;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUresult};

use super::driver::{
    DevicePtr, Driver, Event, Graph, Kernel, Launch, Pinned, Properties, Recordings, TensorMap,
    TensorMapSpec, failed,
};
use crate::error::{Error, Result};

use library::{Context, Failure, admit_map, check};
pub use library::{Listed, devices};
use modules::Modules;
use profiler::Profiler;

/// Events that can be told apart; an older one is known to be done.
const EVENTS: usize = 1024;
/// How long [`Driver::synchronize`] waits unless `SIDEREAL_CUDA_WAIT` says so. Under compute-sanitizer a kernel may take minutes.
const SYNCHRONIZE: Duration = Duration::from_secs(300);

/// Every buffer of an arena begins at a multiple of this.
const ALIGN: usize = 256;

/// A GPU.
pub struct CudaDriver {
    properties: Properties,
    modules: Modules,
    stream: sys::CUstream,
    arenas: HashMap<DevicePtr, Arena>,
    /// Ring: event n is at n % [`EVENTS`].
    events: Vec<sys::CUevent>,
    next_event: u64,
    graphs: Recordings<sys::CUgraphExec>,
    capturing: bool,
    separate: bool,
    /// How long [`Driver::synchronize`] waits.
    patience: Duration,
    profiler: Profiler,
    /// What was enqueued last; a fault shows at a later call, and this narrows down whose it is.
    last: Last,
    /// What the next launch follows in the stream is a kernel.
    after_kernel: bool,
    fault: Option<String>,
    context: Arc<Context>,
}

/// How long a synchronization waits.
fn patience() -> Result<Duration> {
    let Some(given) = std::env::var_os("SIDEREAL_CUDA_WAIT") else { return Ok(SYNCHRONIZE) };
    let seconds = given.to_str().and_then(|seconds| seconds.parse().ok()).filter(|&seconds| seconds > 0);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| failed(format!("SIDEREAL_CUDA_WAIT: {given:?} is no number of seconds")))
}

struct Arena {
    allocations: Vec<sys::CUdeviceptr>,
}

#[derive(Clone, Copy)]
enum Last {
    Nothing,
    Kernel(Kernel),
    Graph(Graph),
}

// SAFETY: the handles are the driver library's, which takes them from any thread to which their context is current, and every call
// here makes it so first. Nothing is shared between threads: `&mut self`.
unsafe impl Send for CudaDriver {}

impl CudaDriver {
    /// Opens a device by its number in the driver's order.
    ///
    /// # Errors
    /// [`Error::Device`], as a sentence: no driver, one too old, no GPU, no code for this one in the build.
    pub fn new(ordinal: usize) -> Result<CudaDriver> {
        let patience = patience()?;
        let (device, properties) = library::find(ordinal)?;
        modules::choose(&properties)?;
        let context = Context::retain(device)?;
        context.enter().map_err(failed)?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) }).map_err(failed)?;
        let mut driver = CudaDriver {
            modules: Modules::new(properties.shared_per_block),
            properties,
            stream,
            arenas: HashMap::new(),
            events: Vec::new(),
            next_event: 0,
            graphs: Recordings::new(),
            capturing: false,
            patience,
            separate: std::env::var_os("SIDEREAL_CUDA_SEPARATE").is_some_and(|on| on == "1"),
            profiler: Profiler::new(),
            last: Last::Nothing,
            after_kernel: false,
            fault: None,
            context,
        };
        driver.modules.load(&driver.properties)?;
        Ok(driver)
    }

    /// What every call begins with: no fault so far, and the context is this thread's.
    fn enter(&mut self) -> Result<()> {
        if let Some(fault) = &self.fault {
            return Err(failed(fault));
        }
        let entered = self.context.enter();
        entered.map_err(|failure| self.failed(failure))
    }

    /// What calls begin with that a recording cannot hold.
    fn enter_outside_capture(&mut self, what: &str) -> Result<()> {
        if self.capturing {
            return Err(failed(format!("{what} inside a capture")));
        }
        self.enter()
    }

    /// The outcome of a call: an error keeps the call's name, and stays if the context is lost.
    fn done(&mut self, call: &'static str, code: CUresult) -> Result<()> {
        check(call, code).map_err(|failure| self.failed(failure))
    }

    fn failed(&mut self, failure: Failure) -> Error {
        let sentence = format!("{failure}{}", self.after());
        if failure.is_sticky() {
            self.fault = Some(sentence.clone());
        }
        failed(sentence)
    }

    /// Names what was enqueued last.
    fn after(&self) -> String {
        match self.last {
            Last::Nothing => String::new(),
            Last::Kernel(kernel) => self
                .modules
                .get(kernel)
                .map_or(String::new(), |entry| format!("; enqueued last: kernel {}", entry.name)),
            Last::Graph(graph) => format!("; enqueued last: graph {}", graph.0),
        }
    }

    /// The device does not answer: from now on every call fails, and nothing is freed.
    fn hung(&mut self, waited: Duration) -> Error {
        self.context.abandon();
        let sentence =
            format!("the device has not finished after {:.1} s{}", waited.as_secs_f64(), self.after());
        self.fault = Some(sentence.clone());
        failed(sentence)
    }

    /// The handle of an event; none if its place in the ring has been taken since, which waits for it.
    fn event(&self, event: Event) -> Result<Option<sys::CUevent>> {
        if event.0 >= self.next_event {
            return Err(failed(format!("event {} has not been recorded", event.0)));
        }
        let alive = self.next_event - event.0 <= EVENTS as u64;
        Ok(alive.then(|| self.events[(event.0 % EVENTS as u64) as usize]))
    }

    /// The place of the next event in the ring, free to be recorded.
    fn next_place(&mut self) -> Result<usize> {
        let place = (self.next_event % EVENTS as u64) as usize;
        if place < self.events.len() {
            self.wait(Event(self.next_event - EVENTS as u64), self.patience)?;
            return Ok(place);
        }
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT as u32;
        // SAFETY: the context is current.
        self.done("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        self.events.push(event);
        Ok(place)
    }

    /// Allocates device memory, or says how much was needed and how much is there.
    fn take(&mut self, purpose: &str, bytes: usize) -> Result<sys::CUdeviceptr> {
        let mut at = 0;
        // SAFETY: the context is current.
        let code = unsafe { sys::cuMemAlloc_v2(&mut at, bytes) };
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let free = self.free_memory()?;
            let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
            return Err(failed(format!(
                "{purpose} needs {:.2} GiB; {} has {:.2} GiB free of {:.2} GiB",
                gib(bytes as u64),
                self.properties.name,
                gib(free),
                gib(self.properties.memory)
            )));
        }
        self.done("cuMemAlloc", code)?;
        Ok(at)
    }

    /// Gives device memory back.
    ///
    /// # Safety
    /// Nothing under way uses it.
    unsafe fn give_back(&mut self, allocations: &[sys::CUdeviceptr]) -> Result<()> {
        let mut result = Ok(());
        for &at in allocations {
            // SAFETY: as promised; `at` came from `take` and leaves with this.
            let freed = self.done("cuMemFree", unsafe { sys::cuMemFree_v2(at) });
            result = result.and(freed);
        }
        result
    }

    /// Ends the stream's recording and makes it ready to launch.
    fn instantiate(&mut self, graph: sys::CUgraph) -> Result<sys::CUgraphExec> {
        let mut ready = std::ptr::null_mut();
        // SAFETY: a graph that a capture has ended with.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0) };
        // SAFETY: as above; what was instantiated does not need it any more.
        let destroyed = unsafe { sys::cuGraphDestroy(graph) };
        self.done("cuGraphInstantiate", code)?;
        self.done("cuGraphDestroy", destroyed)?;
        // SAFETY: just instantiated. Uploading now keeps it out of the first launch.
        let code = unsafe { sys::cuGraphUpload(ready, self.stream) };
        self.done("cuGraphUpload", code)?;
        Ok(ready)
    }
}

impl Driver for CudaDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&mut self) -> Result<u64> {
        self.enter_outside_capture("asking for free memory")?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current.
        self.done("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free as u64)
    }

    fn allocate(&mut self, purpose: &'static str, sizes: &[usize]) -> Result<Vec<DevicePtr>> {
        self.enter_outside_capture("an allocation")?;
        if sizes.is_empty() {
            return Ok(Vec::new());
        }
        // Sums that do not fit are sizes that the device does not have either.
        let place = |size: &usize| (*size).max(1).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        let places: Vec<usize> = sizes.iter().map(place).collect();
        let whole = places.iter().fold(0usize, |sum, &place| sum.saturating_add(place));
        let cuts: Vec<usize> = if self.separate { sizes.to_vec() } else { vec![whole] };
        let mut allocations = Vec::with_capacity(cuts.len());
        for bytes in cuts {
            match self.take(purpose, bytes.max(1)) {
                Ok(at) => allocations.push(at),
                Err(error) => {
                    // SAFETY: nobody has been told of them. The first error is the one to report.
                    let _ = unsafe { self.give_back(&allocations) };
                    return Err(error);
                }
            }
        }
        let buffers: Vec<DevicePtr> = if self.separate {
            allocations.iter().map(|&at| DevicePtr(at)).collect()
        } else {
            let starts = places.iter().scan(allocations[0], |next, &place| {
                let at = *next;
                *next += place as u64;
                Some(DevicePtr(at))
            });
            starts.collect()
        };
        if let Some(&first) = buffers.first() {
            self.arenas.insert(first, Arena { allocations });
        }
        Ok(buffers)
    }

    fn free(&mut self, first: DevicePtr) -> Result<()> {
        self.enter_outside_capture("freeing an arena")?;
        if !self.arenas.contains_key(&first) {
            return Err(failed(format!("no arena begins at {:#x}", first.0)));
        }
        self.synchronize()?;
        let arena = self.arenas.remove(&first).map_or(Vec::new(), |arena| arena.allocations);
        // SAFETY: everything enqueued is done, and the arena is forgotten.
        unsafe { self.give_back(&arena) }
    }

    fn pin(&mut self, bytes: usize) -> Result<Pinned> {
        self.enter_outside_capture("pinning")?;
        let mut at = std::ptr::null_mut::<c_void>();
        // SAFETY: the context is current. No flags: write-combined memory would make reading back slow.
        self.done("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut at, bytes.max(1), 0) })?;
        let at = at.cast::<u8>();
        // SAFETY: `bytes.max(1)` bytes that are ours.
        unsafe { at.write_bytes(0, bytes.max(1)) };
        let (address, context) = (at as usize, self.context.clone());
        let free = Box::new(move || {
            if !context.is_abandoned() && context.enter().is_ok() {
                // SAFETY: allocated above, freed once. An error has nobody to be told to.
                let _ = unsafe { sys::cuMemFreeHost(address as *mut c_void) };
            }
        });
        // SAFETY: zeroed, valid until freed, and known to nobody else.
        Ok(unsafe { Pinned::new(at, bytes, free) })
    }

    fn copy_in(&mut self, to: DevicePtr, from: &Pinned, range: Range<usize>) -> Result<()> {
        self.enter()?;
        if range.is_empty() {
            return Ok(());
        }
        let bytes = from.bytes();
        let Some(bytes) = bytes.get(range.clone()) else {
            return Err(failed(format!("a copy of bytes {range:?} of {} pinned ones", bytes.len())));
        };
        self.after_kernel = false;
        // SAFETY: the source is pinned and outlives the copy by the rule of `Pinned`.
        let code =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        self.done("cuMemcpyHtoDAsync", code)
    }

    fn copy_out(&mut self, to: &Pinned, at: usize, from: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        let there = to.bytes().len();
        if at.checked_add(bytes).is_none_or(|end| end > there) {
            return Err(failed(format!("a copy of {bytes} bytes to byte {at} of {there} pinned ones")));
        }
        self.after_kernel = false;
        // SAFETY: within the pinned bytes, which outlive the copy by the rule of `Pinned`.
        let code =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.address().add(at).cast(), from.0, bytes, self.stream) };
        self.done("cuMemcpyDtoHAsync", code)
    }

    fn copy(&mut self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        self.after_kernel = false;
        // SAFETY: device addresses, which the library checks.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream) };
        self.done("cuMemcpyDtoDAsync", code)
    }

    fn fill(&mut self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        self.after_kernel = false;
        // SAFETY: a device address, which the library checks.
        let code = unsafe { sys::cuMemsetD8Async(to.0, byte, bytes, self.stream) };
        self.done("cuMemsetD8Async", code)
    }

    fn kernel(&mut self, name: &str) -> Result<Kernel> {
        if let Some(kernel) = self.modules.known(name) {
            return Ok(kernel);
        }
        self.enter_outside_capture("looking for a kernel")?;
        self.modules.find(name)
    }

    fn launch(&mut self, launch: &Launch, args: &[u8]) -> Result<()> {
        self.enter()?;
        let entry = self.modules.get(launch.kernel)?;
        entry.admit(launch, args.len())?;
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        };
        overlap.value.programmaticStreamSerializationAllowed = 1;
        let [x, y, z] = launch.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.stream,
            attrs: &mut overlap,
            // Only a kernel can be overlapped with, and before 9.0 none can.
            numAttrs: u32::from(
                launch.dependent && self.after_kernel && self.properties.capability >= (9, 0),
            ),
        };
        let mut parameters = [args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: a loaded function with one parameter of `args.len()` bytes, which are read before the call returns; the attribute
        // outlives it.
        let code = unsafe {
            sys::cuLaunchKernelEx(&config, entry.function, parameters.as_mut_ptr(), std::ptr::null_mut())
        };
        self.last = Last::Kernel(launch.kernel);
        self.after_kernel = true;
        self.done("cuLaunchKernelEx", code)
    }

    fn tensor_map(&mut self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.enter()?;
        admit_map(spec, &self.properties)?;
        let kind = match spec.bf16 {
            true => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            false => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let mut map = TensorMap([0; 16]);
        // SAFETY: `map` has the size of the library's type and the alignment that the call asks for (64 bytes, though the type says 128
        // since CUDA 13); innermost dimension first, one stride less than dimensions.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                kind,
                2,
                spec.base.0 as *mut c_void,
                [spec.columns, spec.rows].as_ptr(),
                [spec.stride].as_ptr(),
                [64, spec.box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                // Elements beyond the matrix are read as zero.
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.done("cuTensorMapEncodeTiled", code)?;
        Ok(map)
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.enter_outside_capture("a capture")?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: our stream.
        let code = unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) };
        self.done("cuStreamBeginCapture", code)?;
        self.after_kernel = false;
        self.capturing = true;
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph> {
        self.enter()?;
        if !std::mem::take(&mut self.capturing) {
            return Err(failed("the end of a capture that has not begun"));
        }
        let mut graph = std::ptr::null_mut();
        // SAFETY: our stream, which is capturing.
        let code = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        self.done("cuStreamEndCapture", code)?;
        let ready = self.instantiate(graph)?;
        Ok(self.graphs.keep(ready))
    }

    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.enter_outside_capture("a replay")?;
        let ready = *self.graphs.get(graph)?;
        // SAFETY: an instantiated graph of this context.
        let code = unsafe { sys::cuGraphLaunch(ready, self.stream) };
        self.last = Last::Graph(graph);
        self.after_kernel = false;
        self.done("cuGraphLaunch", code)
    }

    fn forget(&mut self, graph: Graph) -> Result<()> {
        self.enter_outside_capture("the end of a graph")?;
        let ready = self.graphs.take(graph)?;
        // SAFETY: an instantiated graph of this context, which nobody can name any more; what is under way of it is left to end.
        let code = unsafe { sys::cuGraphExecDestroy(ready) };
        self.done("cuGraphExecDestroy", code)
    }

    fn record(&mut self) -> Result<Event> {
        self.enter_outside_capture("an event")?;
        let place = self.next_place()?;
        // SAFETY: a live event and our stream.
        let code = unsafe { sys::cuEventRecord(self.events[place], self.stream) };
        self.done("cuEventRecord", code)?;
        self.next_event += 1;
        Ok(Event(self.next_event - 1))
    }

    fn is_done(&mut self, event: Event) -> Result<bool> {
        self.enter_outside_capture("asking for an event")?;
        let Some(handle) = self.event(event)? else { return Ok(true) };
        // SAFETY: a live event.
        match unsafe { sys::cuEventQuery(handle) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => self.done("cuEventQuery", code).map(|()| true),
        }
    }

    fn wait(&mut self, event: Event, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while !self.is_done(event)? {
            let waited = start.elapsed();
            if waited >= limit {
                return Err(self.hung(waited));
            }
            pause(waited);
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        let end = self.record()?;
        self.wait(end, self.patience)
    }

    fn elapsed(&mut self, from: Event, to: Event) -> Result<Duration> {
        self.enter_outside_capture("asking for a time")?;
        let (Some(first), Some(second)) = (self.event(from)?, self.event(to)?) else {
            return Err(failed(format!("more than {EVENTS} events were recorded since")));
        };
        let mut milliseconds = 0.0f32;
        // SAFETY: two live events.
        let code = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, first, second) };
        self.done("cuEventElapsedTime", code)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    fn push_range(&mut self, name: &'static str) {
        self.profiler.push(name);
    }

    fn pop_range(&mut self) {
        self.profiler.pop();
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        if self.context.is_abandoned() || self.context.enter().is_err() {
            return;
        }
        // A device that hangs is noticed here too; then everything stays as it is. After a fault there is nothing to wait for.
        if self.fault.is_none()
            && !self.capturing
            && self.synchronize().is_err()
            && self.context.is_abandoned()
        {
            return;
        }
        // SAFETY: the stream is idle or its context is lost; every handle is live and leaves with the value. Errors have nobody to be
        // told to.
        unsafe {
            for &graph in self.graphs.iter() {
                let _ = sys::cuGraphExecDestroy(graph);
            }
            for &event in &self.events {
                let _ = sys::cuEventDestroy_v2(event);
            }
            for arena in self.arenas.values() {
                for &at in &arena.allocations {
                    let _ = sys::cuMemFree_v2(at);
                }
            }
            let _ = sys::cuStreamDestroy_v2(self.stream);
            self.modules.unload();
        }
    }
}

/// A step takes from tens of microseconds to milliseconds: first spin, then let others run, and sleep only if it takes long.
fn pause(waited: Duration) {
    match waited.as_micros() {
        0..50 => std::hint::spin_loop(),
        50..20_000 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(100)),
    }
}
