//! The drivers that the tests of norm and products run on.

use sidereal::device::cuda::driver::Driver;
#[cfg(feature = "emulated")]
use sidereal::device::cuda::emulated::{Completion, EmulatedDriver, EmulatedOptions, Order};

/// The emulated driver as the environment wants it.
#[cfg(feature = "emulated")]
pub fn one_driver(test: impl FnOnce(&mut dyn Driver)) {
    test(&mut EmulatedDriver::new(EmulatedOptions::from_environment().unwrap()).unwrap());
}

/// Emulated drivers of several orders of threads and completions, or of the one that the environment wants.
#[cfg(feature = "emulated")]
pub fn for_each_driver(mut test: impl FnMut(&mut dyn Driver)) {
    let chosen = ["SIDEREAL_EMULATED_ORDER", "SIDEREAL_EMULATED_ASYNC"];
    if chosen.iter().any(|name| std::env::var_os(name).is_some()) {
        return one_driver(|driver| test(driver));
    }
    let ways = [
        (Order::Forward, Completion::Late),
        (Order::Reverse, Completion::Early),
        (Order::Random, Completion::Late),
        (Order::Warps, Completion::Late),
        (Order::WarpsReverse, Completion::Early),
    ];
    for (order, completion) in ways {
        let options = EmulatedOptions { order, completion, ..EmulatedOptions::from_environment().unwrap() };
        test(&mut EmulatedDriver::new(options).unwrap());
    }
}

/// The drivers that are present.
#[cfg(not(feature = "emulated"))]
pub fn for_each_driver(mut test: impl FnMut(&mut dyn Driver)) {
    crate::kernels::drivers().into_iter().for_each(|(_, mut driver)| test(&mut *driver));
}

/// The drivers that are present.
#[cfg(not(feature = "emulated"))]
pub fn one_driver(test: impl FnMut(&mut dyn Driver)) {
    for_each_driver(test);
}
