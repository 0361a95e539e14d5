//! The CUDA device: the operations as kernels, launched through a [`driver`].

pub mod args;
pub mod ceilings;
pub mod driver;
pub mod embed;
#[cfg(feature = "emulated")]
pub mod emulated;
#[cfg(feature = "cuda")]
pub mod real;
pub mod sample;
