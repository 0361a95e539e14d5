//! Every device that this build and this machine have.

#![allow(dead_code)]

use sidereal::device::cpu::{CpuDevice, CpuOptions, SimdLevel};
use sidereal::device::ops::{Device, DeviceConfig};

/// A device and its name.
pub type Named = (String, Box<dyn Device>);

/// The CPU with each set of instructions that this machine has.
pub fn cpus(config: &dyn Fn() -> DeviceConfig, threads: usize) -> Vec<Named> {
    let level = |simd: SimdLevel| -> Named {
        let device = CpuDevice::new(config(), CpuOptions { threads: Some(threads), simd: Some(simd) });
        (simd.to_string(), Box::new(device.unwrap()))
    };
    SimdLevel::ALL.into_iter().filter(|level| level.is_supported()).map(level).collect()
}

/// The CUDA kernels, run by the host and by the GPU, as far as this build has them and there is one; in reproducible mode or not.
#[cfg(any(feature = "cuda", feature = "emulated"))]
pub fn cudas(config: &dyn Fn() -> DeviceConfig, reproducible: bool) -> Vec<Named> {
    use sidereal::device::cuda::{CudaDevice, CudaOptions};
    let options = CudaOptions { reproducible, ..CudaOptions::default() };
    super::kernels::drivers()
        .into_iter()
        .map(|(name, driver)| -> Named {
            (name, Box::new(CudaDevice::new(driver, config(), options).unwrap()))
        })
        .collect()
}

/// This build has no CUDA device.
#[cfg(not(any(feature = "cuda", feature = "emulated")))]
pub fn cudas(_config: &dyn Fn() -> DeviceConfig, _reproducible: bool) -> Vec<Named> {
    Vec::new()
}
