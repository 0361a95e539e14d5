//! The emulated driver itself.

use sidereal::device::cuda::args::ProbeArgs;
use sidereal::device::cuda::driver::{Driver, Launch};
use sidereal::device::cuda::emulated::{EmulatedDriver, EmulatedOptions};

fn driver() -> Box<dyn Driver> {
    Box::new(EmulatedDriver::new(EmulatedOptions::from_environment().unwrap()).unwrap())
}

#[test]
fn a_kernel_runs() {
    let mut driver = driver();
    let n = 1000usize;
    let buffers = driver.allocate("probe", &[n * 4, n * 4]).unwrap();
    let x: Vec<f32> = (0..n).map(|i| i as f32 * 0.25).collect();
    driver.upload(buffers[0], bytemuck::cast_slice(&x)).unwrap();
    let kernel = driver.kernel("probe").unwrap();
    let launch = Launch { kernel, grid: [3, 1, 1], threads: 128, shared: 0, dependent: true };
    let args = ProbeArgs { x: buffers[0], y: buffers[1], count: n as u64, scale: 1.5, offset: -2.0 };
    driver.run(&launch, &args).unwrap();
    let y: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&driver.download(buffers[1], n * 4).unwrap());
    let expected: Vec<f32> = x.iter().map(|x| x * 1.5 - 2.0).collect();
    assert_eq!(y, expected);
}
