//! Matrix products: `gate_up` and `down` of 1.7B and 8B decoders, from one row to a prefill, and the products of a 1.7B layer as a step of few rows has
//! them: `product/layer/1x12288x2048/norm_gated` norms its rows first, and multiplies the gate's half of the result by the other.

use criterion::Criterion;
use sidereal::device::cuda::args::RowGroup;
use sidereal::device::cuda::norm::Norm;
use sidereal::device::cuda::products::{Epilogue, Product, Products};
use sidereal::device::ops::DType;

use crate::gpu::{Gpu, Work};

/// What becomes of the rows before a product, and of the result.
#[derive(Clone, Copy)]
struct Around {
    name: &'static str,
    norm: bool,
    epilogue: Epilogue,
}

const PLAIN: Around = Around { name: "", norm: false, epilogue: Epilogue::Store };

pub fn benches(c: &mut Criterion, gpu: &mut Gpu) {
    for rows in [1, 8, 16, 32, 64, 256, 2048, 8192] {
        for (n, k) in [(12_288, 2048), (2048, 6144), (28_672, 4096), (4096, 14_336)] {
            product(c, gpu, (rows, n, k), PLAIN);
        }
    }
    let normed = Around { name: "norm_float", norm: true, epilogue: Epilogue::Float };
    let gated = Around { name: "norm_gated", norm: true, epilogue: Epilogue::Gated };
    let residual = Around { name: "residual", norm: false, epilogue: Epilogue::Residual };
    // QKV, the attention's output, gate and up, down.
    let layer = [(4096, 2048, normed), (2048, 2048, residual), (12_288, 2048, gated), (2048, 6144, residual)];
    for rows in [1, 8, 32, 256] {
        for (n, k, around) in layer {
            product(c, gpu, (rows, n, k), around);
        }
    }
}

fn product(c: &mut Criterion, gpu: &mut Gpu, (rows, n, k): (usize, usize, usize), around: Around) {
    let id = match around.name {
        "" => format!("{rows}x{n}x{k}"),
        name => format!("layer/{rows}x{n}x{k}/{name}"),
    };
    if !gpu.wanted(&format!("product/{id}")) {
        return;
    }
    let sets = gpu.sets(n * k * 2);
    let (widest_k, max_rows) = if around.norm { (k, rows) } else { (8, 8) };
    let mut products =
        Products::new(&mut *gpu.driver, DType::Bf16, widest_k, max_rows, false).expect("kernels");
    let weights: Vec<_> = (0..sets).map(|_| gpu.random(n * k * 2)).collect();
    let matrices: Vec<_> =
        weights.iter().map(|&w| products.matrix(&mut *gpu.driver, w, n, k).expect("a matrix")).collect();
    let width = if around.epilogue == Epilogue::Gated { n / 2 } else { n };
    // Bytes written, and for a residual read, per element of the result.
    let element = if matches!(around.epilogue, Epilogue::Float | Epilogue::Residual) { 4 } else { 2 };
    let (x, out) = (gpu.random(rows * k * 2), gpu.random(rows * width * element));
    let norm_weight = gpu.upload(&vec![1.0f32; k]);
    let group = gpu.upload(&[RowGroup { first: 0, rows: rows as u32, out: 0 }]);
    let activations = products.activations(&mut *gpu.driver, x, rows, k).expect("activations");
    let work = Work {
        bytes: 2 * k * (n + rows) + element * rows * width,
        operations: 2.0 * rows as f64 * n as f64 * k as f64,
    };
    gpu.bench(c, ("product", &id), (work, sets), |driver, set| {
        let product = Product {
            x: &activations,
            norm: around.norm.then_some(Norm { weight: norm_weight, eps: 1e-6 }),
            w: &matrices[set],
            bias: None,
            epilogue: around.epilogue,
            out,
            ld_out: width,
            group,
            bucket: rows,
            max_out: rows,
        };
        products.enqueue(driver, &product)
    });
    let used = [x, out, norm_weight, group];
    weights.into_iter().chain(used).for_each(|at| gpu.driver.free(at).expect("freed"));
}
