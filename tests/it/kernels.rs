//! Kernel-level tests: each family of kernels against its reference, on every driver present.

use sidereal::device::cuda::driver::Driver;

mod ceilings;
#[cfg(feature = "emulated")]
mod emulator;

/// Runs a test on every driver present. Without a GPU the real one is left out, unless REQUIRE_GPU=1.
pub fn for_each_driver(mut test: impl FnMut(&mut dyn Driver)) {
    #[cfg(feature = "emulated")]
    {
        use sidereal::device::cuda::emulated::{EmulatedDriver, EmulatedOptions};
        test(&mut EmulatedDriver::new(EmulatedOptions::from_environment().unwrap()).unwrap());
    }
    #[cfg(feature = "cuda")]
    match sidereal::device::cuda::real::CudaDriver::new(0) {
        Ok(mut driver) => test(&mut driver),
        Err(error) if std::env::var_os("REQUIRE_GPU").is_some_and(|on| on == "1") => panic!("{error}"),
        Err(error) => println!("skipped: {error}"),
    }
}
