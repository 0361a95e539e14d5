//! What lies between two kernels of a graph: chains of the smallest kernel, each reading what the one before wrote.
//!
//! `boundary/dependent/132`: launches of 132 blocks that may begin while their predecessor drains, as all of a step are; like the products and norms
//! they let their successor begin before they wait themselves, which is the best case. A figure is a whole link of the chain: the boundary, and a kernel
//! that reads and writes one number per thread.

use criterion::Criterion;
use sidereal::device::cuda::args::ProbeArgs;
use sidereal::device::cuda::driver::Launch;

use crate::gpu::{Gpu, Work};

/// Launches of a graph: the start of one costs more than a boundary does.
const LINKS: usize = 512;
const THREADS: u32 = 256;

pub fn benches(c: &mut Criterion, gpu: &mut Gpu) {
    let multiprocessors = gpu.driver.properties().multiprocessors;
    for (kind, dependent) in [("plain", false), ("dependent", true)] {
        for blocks in [1, multiprocessors] {
            let id = format!("{kind}/{blocks}");
            if !gpu.wanted(&format!("boundary/{id}")) {
                continue;
            }
            let kernel = gpu.driver.kernel("probe").expect("the kernel");
            let launch = Launch { kernel, grid: [blocks, 1, 1], threads: THREADS, shared: 0, dependent };
            let count = u64::from(blocks * THREADS);
            let zeros = vec![0.0f32; count as usize];
            let ends = [gpu.upload(&zeros), gpu.upload(&zeros)];
            let work = Work { bytes: 8 * count as usize, operations: 0.0 };
            gpu.bench(c, ("boundary", &id), (work, LINKS), |driver, link| {
                let (x, y) = (ends[link % 2], ends[(link + 1) % 2]);
                driver.run(&launch, &ProbeArgs { x, y, count, scale: 1.0, offset: 1.0 })
            });
            ends.into_iter().for_each(|at| gpu.driver.free(at).expect("freed"));
        }
    }
}
