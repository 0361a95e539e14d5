//! The CUDA device: the operations as kernels, launched through a [`driver`].

pub mod args;
pub mod driver;
#[cfg(feature = "emulated")]
pub mod emulated;
pub mod norm;
pub mod products;
#[cfg(feature = "cuda")]
pub mod real;
