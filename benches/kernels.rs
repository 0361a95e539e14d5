//! The kernels on a GPU at the shapes of 0.6B to 8B decoders, each beside its limit.
//!
//! First the two ceilings are measured: bytes per second of a stream of reads, operations per second of bf16 products. The limit of a bench
//! is its bytes or its operations at those rates, whichever takes longer, and its share is that time over its best. Launches are recorded
//! in a graph, so that the host has no part in the time; operands are random and rotate through more memory than the level-2 cache has. (A SID step
//! changes what it works on and is launched once, behind a fill that keeps the device busy meanwhile.)
//!
//! `cargo bench --features cuda --bench kernels -- [BEGIN]` measures what has an id that begins so: `boundary`, `sid_step`, `head`, `embed`, `sample`, `product` or
//! `attention/decode`. Without a GPU it says so and fails.

#[cfg(feature = "cuda")]
#[path = "kernels/attention.rs"]
mod attention;
#[cfg(feature = "cuda")]
#[path = "kernels/boundary.rs"]
mod boundary;
#[cfg(feature = "cuda")]
#[path = "kernels/gpu.rs"]
mod gpu;
#[cfg(feature = "cuda")]
#[path = "kernels/products.rs"]
mod products;
#[cfg(feature = "cuda")]
#[path = "kernels/sid.rs"]
mod sid;
#[cfg(feature = "cuda")]
#[path = "kernels/text.rs"]
mod text;

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("kernels: built without the feature cuda, nothing to measure");
}

#[cfg(feature = "cuda")]
fn main() {
    let mut gpu = match gpu::Gpu::open() {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("kernels: {error}");
            std::process::exit(1);
        }
    };
    let brief = |seconds| std::time::Duration::from_secs_f32(seconds);
    let mut criterion = criterion::Criterion::default()
        .warm_up_time(brief(0.5))
        .measurement_time(brief(1.0))
        .sample_size(20)
        .configure_from_args();
    boundary::benches(&mut criterion, &mut gpu);
    sid::benches(&mut criterion, &mut gpu);
    text::benches(&mut criterion, &mut gpu);
    products::benches(&mut criterion, &mut gpu);
    attention::benches(&mut criterion, &mut gpu);
    criterion.final_summary();
}
