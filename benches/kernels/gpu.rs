//! The device, its ceilings, and how a launch is timed.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use sidereal::Result;
use sidereal::device::cuda::ceilings::{Ceilings, Extent, measure};
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::real::CudaDriver;

/// What an operation must move and compute at least.
#[derive(Clone, Copy)]
pub struct Work {
    pub bytes: usize,
    /// Multiplications and additions.
    pub operations: f64,
}

/// A device and its ceilings.
pub struct Gpu {
    pub driver: Box<dyn Driver>,
    ceilings: Ceilings,
    /// Bytes that are filled before what is timed step by step.
    stall: usize,
    /// How the ids of what is to be measured begin; all are, if nothing is said.
    filter: Option<String>,
}

impl Gpu {
    /// The first GPU; prints what it can do at most. With the feature `emulated`, `SIDEREAL_BENCH_DRIVER=emulated` takes the host-run driver instead: it shows that
    /// the benches run, and no speed.
    pub fn open() -> Result<Gpu> {
        let filter = std::env::args().skip(1).find(|word| !word.starts_with('-'));
        #[cfg(feature = "emulated")]
        if std::env::var_os("SIDEREAL_BENCH_DRIVER").is_some_and(|name| name == "emulated") {
            let driver = sidereal::device::cuda::EmulatedDriver::new(Default::default())?;
            println!("the host-run driver: no figure below means anything");
            let ceilings = Ceilings { read: f64::INFINITY, matrix: f64::INFINITY };
            return Ok(Gpu { driver: Box::new(driver), ceilings, stall: 16, filter });
        }
        let mut driver: Box<dyn Driver> = Box::new(CudaDriver::new(0)?);
        let extent = Extent::of(&mut *driver)?;
        let ceilings = measure(&mut *driver, &extent)?;
        let name = &driver.properties().name;
        println!(
            "{name}: reads {:.0} GB/s, multiplies {:.0} TFLOP/s",
            ceilings.read / 1e9,
            ceilings.matrix / 1e12
        );
        Ok(Gpu { driver, ceilings, stall: STALL_BYTES, filter })
    }

    /// Whether benches are wanted whose ids begin so. What a filter leaves out is not even made ready: catalogs of ten million items, gigabytes of operands.
    pub fn wanted(&self, begin: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.starts_with(begin) || begin.starts_with(filter.as_str()))
    }

    /// How many sets of operands of `bytes` are needed so that none is found in the level-2 cache.
    pub fn sets(&self, bytes: usize) -> usize {
        let l2 = self.driver.properties().l2 as usize;
        (4 * l2 / bytes.max(1) + 2).min(64)
    }

    /// Buffers for one purpose.
    pub fn allocate(&mut self, sizes: &[usize]) -> Vec<DevicePtr> {
        self.driver.allocate("bench", sizes).expect("memory for the operands")
    }

    /// A buffer that holds `values`.
    pub fn upload<T: bytemuck::Pod>(&mut self, values: &[T]) -> DevicePtr {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let at = self.allocate(&[bytes.len().max(16)])[0];
        self.driver.upload(at, bytes).expect("an upload");
        at
    }

    /// A buffer of `bytes` of random 2-byte elements between -1 and 1, the same 16 MB over and over: what is read is memory all the same.
    pub fn random(&mut self, bytes: usize) -> DevicePtr {
        let at = self.allocate(&[bytes])[0];
        let values: Vec<half::bf16> = noise(1, 8 << 20).map(half::bf16::from_f32).collect();
        let pattern: &[u8] = bytemuck::cast_slice(&values);
        let first = pattern.len().min(bytes);
        self.driver.upload(at, &pattern[..first]).expect("an upload");
        let mut done = first;
        while done < bytes {
            let more = done.min(bytes - done);
            self.driver.copy(at.add(done), at, more).expect("a copy");
            done += more;
        }
        at
    }

    /// Times `enqueue`, which is called with the number of a set of operands, and prints its share of the limit.
    pub fn bench(
        &mut self,
        c: &mut Criterion,
        name: (&str, &str),
        (work, sets): (Work, usize),
        mut enqueue: impl FnMut(&mut dyn Driver, usize) -> Result<()>,
    ) {
        let driver = &mut *self.driver;
        let launches = sets.max(32).next_multiple_of(sets);
        driver.begin_capture().expect("a capture");
        (0..launches).for_each(|i| enqueue(driver, i % sets).expect("a launch"));
        let graph = driver.end_capture().expect("a graph");
        let mut best = f64::INFINITY;
        let mut group = c.benchmark_group(name.0);
        group.throughput(throughput(&work, &self.ceilings));
        group.bench_function(BenchmarkId::from_parameter(name.1), |b| {
            b.iter_custom(|iterations| {
                let replays = iterations.div_ceil(launches as u64);
                let begin = driver.record().expect("an event");
                (0..replays).for_each(|_| driver.replay(graph).expect("a replay"));
                let end = driver.record().expect("an event");
                driver.synchronize().expect("the end");
                let took = driver.elapsed(begin, end).expect("a time").as_secs_f64();
                let one = took / (replays * launches as u64) as f64;
                best = best.min(one);
                Duration::from_secs_f64(one * iterations as f64)
            });
        });
        group.finish();
        driver.forget(graph).expect("freed");
        self.share(name, &work, best);
    }

    /// Times steps that change what they work on, each once: `prepare` readies `sets` of them, which `enqueue` then enqueues behind a long fill, so that
    /// the host is ahead of the device.
    pub fn bench_rounds<S>(
        &mut self,
        c: &mut Criterion,
        name: (&str, &str),
        (work, sets): (Work, usize),
        state: &mut S,
        (prepare, enqueue): (
            impl Fn(&mut S, &mut dyn Driver),
            impl Fn(&mut S, &mut dyn Driver, usize) -> Result<()>,
        ),
    ) {
        let (driver, bytes) = (&mut *self.driver, self.stall);
        let stall = driver.allocate("bench", &[bytes]).expect("memory to fill")[0];
        let mut best = f64::INFINITY;
        let mut group = c.benchmark_group(name.0);
        group.throughput(throughput(&work, &self.ceilings)).warm_up_time(Duration::from_millis(1));
        group.measurement_time(Duration::from_millis(1)).sample_size(10);
        group.bench_function(BenchmarkId::from_parameter(name.1), |b| {
            b.iter_custom(|iterations| {
                prepare(state, driver);
                driver.fill(stall, 0, bytes).expect("a fill");
                let begin = driver.record().expect("an event");
                (0..sets).for_each(|set| enqueue(state, driver, set).expect("a launch"));
                let end = driver.record().expect("an event");
                driver.synchronize().expect("the end");
                let one = driver.elapsed(begin, end).expect("a time").as_secs_f64() / sets as f64;
                best = best.min(one);
                Duration::from_secs_f64(one * iterations as f64)
            });
        });
        group.finish();
        driver.free(stall).expect("freed");
        self.share(name, &work, best);
    }

    /// Prints a time beside its limit.
    fn share(&self, name: (&str, &str), work: &Work, best: f64) {
        if best.is_finite() {
            let limit = (work.bytes as f64 / self.ceilings.read).max(work.operations / self.ceilings.matrix);
            println!("{}/{}: {:.2} us, {:.2} of the limit", name.0, name.1, best * 1e6, limit / best);
        }
    }
}

/// What the limit of the work counts: operations or bytes.
fn throughput(work: &Work, ceilings: &Ceilings) -> Throughput {
    match work.operations / ceilings.matrix > work.bytes as f64 / ceilings.read {
        true => Throughput::Elements(work.operations as u64),
        false => Throughput::Bytes(work.bytes as u64),
    }
}

/// Filling as much takes about a millisecond on a large GPU.
const STALL_BYTES: usize = 4 << 30;

/// Pseudo-random numbers between -1 and 1.
pub fn noise(seed: u64, len: usize) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}
