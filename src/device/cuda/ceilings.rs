//! What a device can do at most: the rate at which it reads its memory and at which it multiplies bf16 matrices, measured.

use std::time::Duration;

use bytemuck::{Pod, Zeroable};

use super::driver::{DevicePtr, Driver, Kernel, Launch};
use crate::error::Result;

/// The two limits of everything that runs on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes per second of a stream of reads.
    pub read: f64,
    /// Floating-point operations per second of bf16 matrix products from registers, on random data.
    pub matrix: f64,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Bytes read per launch, a multiple of 16: several times the level-2 cache.
    pub bytes: usize,
    /// Products of a warp per launch.
    pub rounds: u32,
    /// Timed launches; the best counts.
    pub repeats: usize,
}

impl Extent {
    /// Some tens of milliseconds of work: up to 4 GiB, at most half of what is free.
    ///
    /// # Errors
    /// The driver's.
    pub fn of(driver: &mut dyn Driver) -> Result<Extent> {
        let bytes = (driver.free_memory()? / 2).min(4 << 30) as usize & !15;
        Ok(Extent { bytes, rounds: 20_000, repeats: 10 })
    }
}

/// Arguments of `read_ceiling`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ReadArgs {
    /// `[vectors, 4]` words.
    pub data: DevicePtr,
    /// `[blocks]`: xor of the words that a block has read.
    pub out: DevicePtr,
    /// Vectors of 16 bytes.
    pub vectors: u64,
    /// Zero.
    pub reserved: u64,
}
const _: () = assert!(size_of::<ReadArgs>() == 32, "kernels/ceilings.cu says otherwise");

/// Arguments of `matrix_ceiling_bf16`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct MatrixArgs {
    /// Float `[blocks, THREADS]`: the sum of a thread's accumulators.
    pub out: DevicePtr,
    /// Products of 16 x 16 by 16 x 64 in each warp.
    pub rounds: u32,
    /// Bits of a pair of elements that are drawn; 0: every element is 1.
    pub mask: u32,
}
const _: () = assert!(size_of::<MatrixArgs>() == 16, "kernels/ceilings.cu says otherwise");

/// Threads of a block of either kernel.
pub const THREADS: u32 = 256;
/// Multiplications and additions of a warp and round: 16 x 64 x 16 of each.
const ROUND: f64 = 2.0 * 16.0 * 64.0 * 16.0;
/// Signs and mantissas of two bf16.
const RANDOM: u32 = 0x807f_807f;

/// Measures both.
///
/// # Errors
/// The driver's; too little memory for `extent.bytes`.
pub fn measure(driver: &mut dyn Driver, extent: &Extent) -> Result<Ceilings> {
    let multiprocessors = driver.properties().multiprocessors;
    let (readers, multipliers) = (4 * multiprocessors, 2 * multiprocessors);
    let sizes = [extent.bytes, 4 * readers as usize, 4 * (multipliers * THREADS) as usize];
    let buffers = driver.allocate("ceilings", &sizes)?;
    driver.fill(buffers[0], 0x5a, extent.bytes)?;
    let vectors = extent.bytes as u64 / 16;
    let read = ReadArgs { data: buffers[0], out: buffers[1], vectors, reserved: 0 };
    let matrix = MatrixArgs { out: buffers[2], rounds: extent.rounds, mask: RANDOM };
    let kernels = [driver.kernel("read_ceiling")?, driver.kernel("matrix_ceiling_bf16")?];
    let reading = best(driver, &whole(kernels[0], readers), &read, extent.repeats)?;
    let multiplying = best(driver, &whole(kernels[1], multipliers), &matrix, extent.repeats)?;
    driver.free(buffers[0])?;
    let products = f64::from(extent.rounds) * ROUND * f64::from(multipliers * THREADS / 32);
    Ok(Ceilings {
        read: extent.bytes as f64 / reading.as_secs_f64(),
        matrix: products / multiplying.as_secs_f64(),
    })
}

fn whole(kernel: Kernel, blocks: u32) -> Launch {
    Launch { kernel, grid: [blocks, 1, 1], threads: THREADS, shared: 0, dependent: false }
}

/// The shortest time of a launch, after one that does not count.
fn best<A: Pod>(driver: &mut dyn Driver, launch: &Launch, args: &A, repeats: usize) -> Result<Duration> {
    driver.run(launch, args)?;
    driver.synchronize()?;
    let mut best = Duration::MAX;
    for _ in 0..repeats {
        let begin = driver.record()?;
        driver.run(launch, args)?;
        let end = driver.record()?;
        driver.synchronize()?;
        best = best.min(driver.elapsed(begin, end)?);
    }
    Ok(best.max(Duration::from_nanos(1)))
}
