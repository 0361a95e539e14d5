//! The drivers that kernel tests run on.

use sidereal::device::cuda::driver::Driver;
#[cfg(feature = "emulated")]
use sidereal::device::cuda::emulated::{Completion, EmulatedDriver, EmulatedOptions, Order};

/// The driver for tests that run on one: what the environment asks for.
pub fn one_driver() -> Box<dyn Driver> {
    Box::new(EmulatedDriver::new(EmulatedOptions::from_environment().unwrap()).unwrap())
}

/// Emulated drivers under several orders of threads.
pub fn orders() -> Vec<Box<dyn Driver>> {
    let options = [
        (Order::Forward, Completion::Late, 1),
        (Order::Reverse, Completion::Early, 1),
        (Order::Random, Completion::Late, 5),
        (Order::WarpsReverse, Completion::Early, 1),
    ];
    let base = EmulatedOptions::from_environment().unwrap();
    let with = |(order, completion, seed)| EmulatedOptions { order, completion, seed, ..base.clone() };
    options
        .map(with)
        .into_iter()
        .map(|o| Box::new(EmulatedDriver::new(o).unwrap()) as Box<dyn Driver>)
        .collect()
}

/// Calls `test` with each driver.
pub fn for_each_driver(mut test: impl FnMut(&mut dyn Driver)) {
    for mut driver in orders() {
        test(&mut *driver);
    }
}
