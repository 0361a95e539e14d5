//! The CUDA device: the operations as kernels, launched through a [`driver`].

pub mod args;
pub mod ceilings;
pub mod driver;
#[cfg(feature = "emulated")]
pub mod emulated;
#[cfg(feature = "cuda")]
pub mod real;
