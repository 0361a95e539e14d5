//! Kernel-level tests: each family of kernels against its reference, on every driver present.

mod ceilings;
mod checks;
mod embed;
#[cfg(feature = "emulated")]
mod emulator;
mod sample;

use bytemuck::Pod;
use sidereal::device::cuda::driver::{DevicePtr, Driver};
#[cfg(feature = "emulated")]
use sidereal::device::cuda::emulated::{Completion, EmulatedDriver, EmulatedOptions, Order};

/// Options of an emulated device, with an order and a time of completion.
#[cfg(feature = "emulated")]
fn emulated(order: Order, completion: Completion) -> EmulatedOptions {
    let options = EmulatedOptions::from_environment().unwrap();
    EmulatedOptions { order, completion, ..options }
}

/// Every driver present: the emulated device in each order of threads, with asynchronous copies late and early, and a GPU. Without one a
/// line says so, unless REQUIRE_GPU=1, which makes it a failure.
fn drivers() -> Vec<(String, Box<dyn Driver>)> {
    let mut drivers: Vec<(String, Box<dyn Driver>)> = Vec::new();
    #[cfg(feature = "emulated")]
    for order in [Order::Forward, Order::Reverse, Order::Random, Order::Warps, Order::WarpsReverse] {
        for completion in [Completion::Late, Completion::Early] {
            let driver = EmulatedDriver::new(emulated(order, completion)).unwrap();
            drivers.push((format!("emulated, {order:?}, {completion:?}"), Box::new(driver)));
        }
    }
    #[cfg(feature = "cuda")]
    match sidereal::device::cuda::real::CudaDriver::new(0) {
        Ok(driver) => drivers.push((driver.properties().name.clone(), Box::new(driver))),
        Err(error) if std::env::var_os("REQUIRE_GPU").is_some_and(|on| on == "1") => panic!("REQUIRE_GPU=1: {error}"),
        Err(error) => println!("skipped on a GPU: {error}"),
    }
    drivers
}

/// One buffer of its own for some values.
fn upload<T: Pod>(driver: &mut dyn Driver, values: &[T]) -> DevicePtr {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let at = driver.allocate("test", &[bytes.len()]).unwrap()[0];
    driver.upload(at, bytes).unwrap();
    at
}

/// The values of a buffer.
fn download<T: Pod>(driver: &mut dyn Driver, from: DevicePtr, count: usize) -> Vec<T> {
    let bytes = driver.download(from, count * size_of::<T>()).unwrap();
    bytemuck::allocation::pod_collect_to_vec(&bytes)
}
