//! The CUDA device: the operations as kernels, launched through a [`driver`].
//!
//! `run` is the device itself and its sequences of launches; each family of kernels (`embed`, `norm`, `products`, `rope`, `attention`, `sample`, `sid`)
//! has a file that says what to launch with which arguments. Two drivers launch: `real` on a GPU, [`emulated`] on the host.

pub mod args;
pub mod attention;
pub mod ceilings;
pub mod driver;
pub mod embed;
#[cfg(feature = "emulated")]
pub mod emulated;
mod graphs;
mod memory;
pub mod norm;
mod plan;
pub mod products;
#[cfg(feature = "cuda")]
pub mod real;
pub mod rope;
mod run;
pub mod sample;
pub mod sid;
mod step;
mod weights;

#[cfg(feature = "emulated")]
pub use emulated::{EmulatedDriver, EmulatedOptions};
pub use memory::{Fit, MemoryPlan};
#[cfg(feature = "cuda")]
pub use real::CudaDriver;
pub use run::{CudaDevice, CudaOptions};
