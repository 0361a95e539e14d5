//! Kernel-level tests: each family of kernels against its reference, on every driver there is.

mod attention;
mod ceilings;
mod checks;
mod embed;
#[cfg(feature = "emulated")]
mod emulator;
mod norm;
mod products;
mod rope;
mod sample;
mod sid;

use bytemuck::Pod;
use sidereal::device::cuda::driver::{DevicePtr, Driver};
#[cfg(feature = "emulated")]
use sidereal::device::cuda::emulated::{Completion, EmulatedDriver, EmulatedOptions, Order};

/// Every driver that this build and this machine have, by name: the host, in one order of threads, and the first GPU.
pub fn drivers() -> Vec<(String, Box<dyn Driver>)> {
    let mut drivers: Vec<(String, Box<dyn Driver>)> = Vec::new();
    #[cfg(feature = "emulated")]
    {
        let options = EmulatedOptions::from_environment().unwrap();
        drivers.push(("emulated".to_owned(), Box::new(EmulatedDriver::new(options).unwrap())));
    }
    drivers.extend(gpu());
    drivers
}

/// The same, with the host in several orders of threads, asynchronous copies late and early.
pub fn drivers_in_every_order() -> Vec<(String, Box<dyn Driver>)> {
    let mut drivers: Vec<(String, Box<dyn Driver>)> = Vec::new();
    #[cfg(feature = "emulated")]
    for (order, completion) in [
        (Order::Forward, Completion::Late),
        (Order::Forward, Completion::Early),
        (Order::Reverse, Completion::Late),
        (Order::Random, Completion::Late),
        (Order::Warps, Completion::Early),
        (Order::WarpsReverse, Completion::Late),
    ] {
        let options = emulated(order, completion);
        let name = format!("emulated, {order:?}, {completion:?}");
        drivers.push((name, Box::new(EmulatedDriver::new(options).unwrap())));
    }
    drivers.extend(gpu());
    drivers
}

/// Runs a test on every driver, in every order, or in the one that the environment names.
fn for_each_driver(mut test: impl FnMut(&mut dyn Driver)) {
    let named = ["SIDEREAL_EMULATED_ORDER", "SIDEREAL_EMULATED_ASYNC"];
    let one = named.iter().any(|name| std::env::var_os(name).is_some());
    (if one { drivers() } else { drivers_in_every_order() })
        .into_iter()
        .for_each(|(_, mut driver)| test(&mut *driver));
}

/// Runs a test on every driver, in one order.
fn one_driver(mut test: impl FnMut(&mut dyn Driver)) {
    drivers().into_iter().for_each(|(_, mut driver)| test(&mut *driver));
}

/// The first GPU, if this build can use one and there is one; `REQUIRE_GPU=1` makes its absence a failure.
fn gpu() -> Option<(String, Box<dyn Driver>)> {
    #[cfg(feature = "cuda")]
    match sidereal::device::cuda::real::CudaDriver::new(0) {
        Ok(driver) => return Some((driver.properties().name.clone(), Box::new(driver))),
        Err(error) if std::env::var_os("REQUIRE_GPU").is_some_and(|v| v == "1") => panic!("{error}"),
        Err(error) => {
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| println!("skipped on a GPU: {error}"));
        }
    }
    #[cfg(not(feature = "cuda"))]
    if std::env::var_os("REQUIRE_GPU").is_some_and(|v| v == "1") {
        panic!("REQUIRE_GPU=1, but these tests were built without the feature cuda");
    }
    None
}

/// Options of an emulated device, with an order and a time of completion.
#[cfg(feature = "emulated")]
fn emulated(order: Order, completion: Completion) -> EmulatedOptions {
    EmulatedOptions { order, completion, ..EmulatedOptions::from_environment().unwrap() }
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
