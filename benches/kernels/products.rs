//! Matrix products: `gate_up` and `down` of 1.7B and 8B decoders, from one row to a prefill.

use criterion::Criterion;
use sidereal::device::cuda::args::RowGroup;
use sidereal::device::cuda::products::{Epilogue, Product, Products};
use sidereal::device::ops::DType;

use crate::gpu::{Gpu, Work};

pub fn benches(c: &mut Criterion, gpu: &mut Gpu) {
    for rows in [1, 8, 16, 32, 64, 256, 2048, 8192] {
        for (n, k) in [(12_288, 2048), (2048, 6144), (28_672, 4096), (4096, 14_336)] {
            product(c, gpu, rows, (n, k));
        }
    }
}

fn product(c: &mut Criterion, gpu: &mut Gpu, rows: usize, (n, k): (usize, usize)) {
    let id = format!("{rows}x{n}x{k}");
    if !gpu.wanted(&format!("product/{id}")) {
        return;
    }
    let sets = gpu.sets(n * k * 2);
    let mut products = Products::new(&mut *gpu.driver, DType::Bf16, 8, 8, false).expect("kernels");
    let weights: Vec<_> = (0..sets).map(|_| gpu.random(n * k * 2)).collect();
    let matrices: Vec<_> =
        weights.iter().map(|&w| products.matrix(&mut *gpu.driver, w, n, k).expect("a matrix")).collect();
    let (x, out) = (gpu.random(rows * k * 2), gpu.allocate(&[rows * n * 2])[0]);
    let group = gpu.upload(&[RowGroup { first: 0, rows: rows as u32, out: 0 }]);
    let activations = products.activations(&mut *gpu.driver, x, rows, k).expect("activations");
    let work =
        Work { bytes: 2 * (n * k + rows * (n + k)), operations: 2.0 * rows as f64 * n as f64 * k as f64 };
    gpu.bench(c, ("product", &id), (work, sets), |driver, set| {
        let product = Product {
            x: &activations,
            norm: None,
            w: &matrices[set],
            bias: None,
            epilogue: Epilogue::Store,
            out,
            ld_out: n,
            group,
            bucket: rows,
            max_out: rows,
        };
        products.enqueue(driver, &product)
    });
    weights.into_iter().chain([x, out, group]).for_each(|at| gpu.driver.free(at).expect("freed"));
}
