//! What a device can do at most: the rate at which it reads its memory and at which it multiplies bf16 matrices, measured.

use std::time::Duration;

use bytemuck::Pod;

use super::args::mirrored;
use super::driver::{DevicePtr, Driver, Launch};
use crate::error::Result;

/// The two limits of everything that runs on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes per second of a stream of reads.
    pub read: f64,
    /// Floating-point operations per second of bf16 matrix products of random data that is already where the products take it from.
    pub matrix: f64,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Bytes read per launch, a multiple of 16: several times the level-2 cache.
    pub bytes: usize,
    /// Rounds of products per launch.
    pub rounds: u32,
    /// Timed launches; the best counts.
    pub repeats: usize,
}

impl Extent {
    /// Some tens of milliseconds of work on an H200: up to 4 GiB, at most half of what is free.
    ///
    /// # Errors
    /// The driver's.
    pub fn of(driver: &mut dyn Driver) -> Result<Extent> {
        let bytes = (driver.free_memory()? / 2).min(4 << 30) as usize & !15;
        Ok(Extent { bytes, rounds: 20_000, repeats: 10 })
    }
}

mirrored! {
    /// Arguments of `read_ceiling`.
    ReadArgs [32] {
        /// `[vectors, 4]` words.
        data: DevicePtr,
        /// `[blocks]`: xor of the words that a block has read.
        out: DevicePtr,
        /// Vectors of 16 bytes.
        vectors: u64,
        /// Zero.
        reserved: u64,
    }
    /// Arguments of a [`Multiplier`].
    MatrixArgs [16] {
        /// Float `[blocks, THREADS]`: the sum of a thread's accumulators.
        out: DevicePtr,
        /// Rounds of products.
        rounds: u32,
        /// Bits of a pair of elements that are drawn; 0: every element is 1.
        mask: u32,
    }
}

/// Threads of a block of every kernel here.
pub const THREADS: u32 = 256;
/// Blocks of `read_ceiling` that fit on a multiprocessor.
const READERS: u32 = 4;

/// A kernel that multiplies.
#[derive(Clone, Copy, Debug)]
pub struct Multiplier {
    /// Its entry.
    pub name: &'static str,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Blocks that fit on a multiprocessor.
    pub blocks: u32,
    /// Multiplications of a block and round; as many additions follow.
    pub products: u32,
    /// What an accumulator holds after a round of ones, and how many a thread has.
    pub ones: (u32, u32),
}

/// Products of single warps, of every architecture.
pub const WARPS: Multiplier = Multiplier {
    name: "matrix_ceiling_bf16",
    shared: 0,
    blocks: 2,
    products: 8 * 16 * 64 * 16,
    ones: (16, 32),
};
/// Products of warpgroups, of 9.0 alone.
pub const WARPGROUPS: Multiplier = Multiplier {
    name: "matrix_ceiling_wgmma_bf16",
    shared: 2 * 64 * 64 * 2 + 256 * 64 * 2,
    blocks: 1,
    products: 2 * 64 * 256 * 64,
    ones: (64, 128),
};
/// Signs and mantissas of two bf16.
const RANDOM: u32 = 0x807f_807f;

/// Measures both.
///
/// # Errors
/// The driver's; too little memory for `extent.bytes`.
pub fn measure(driver: &mut dyn Driver, extent: &Extent) -> Result<Ceilings> {
    let properties = driver.properties();
    let multiplier = if properties.capability == (9, 0) { WARPGROUPS } else { WARPS };
    let (readers, multipliers) =
        (READERS * properties.multiprocessors, multiplier.blocks * properties.multiprocessors);
    let sizes = [extent.bytes, 4 * readers as usize, 4 * (multipliers * THREADS) as usize];
    let buffers = driver.allocate("ceilings", &sizes)?;
    driver.fill(buffers[0], 0x5a, extent.bytes)?;
    let read = Launch {
        kernel: driver.kernel("read_ceiling")?,
        grid: [readers, 1, 1],
        threads: THREADS,
        shared: 0,
        dependent: false,
    };
    let vectors = extent.bytes as u64 / 16;
    let args = ReadArgs { data: buffers[0], out: buffers[1], vectors, reserved: 0 };
    let reading = best(driver, &read, &args, extent.repeats)?;
    let multiply = Launch {
        kernel: driver.kernel(multiplier.name)?,
        grid: [multipliers, 1, 1],
        shared: multiplier.shared,
        ..read
    };
    let args = MatrixArgs { out: buffers[2], rounds: extent.rounds, mask: RANDOM };
    let multiplying = best(driver, &multiply, &args, extent.repeats)?;
    driver.free(buffers[0])?;
    let operations = 2.0 * f64::from(multiplier.products) * f64::from(extent.rounds) * f64::from(multipliers);
    Ok(Ceilings {
        read: extent.bytes as f64 / reading.as_secs_f64(),
        matrix: operations / multiplying.as_secs_f64(),
    })
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
