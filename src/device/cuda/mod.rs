//! The CUDA device: the operations as kernels, launched through a [`driver`].

pub mod args;
pub mod attention;
pub mod driver;
#[cfg(feature = "emulated")]
pub mod emulated;
#[cfg(feature = "cuda")]
pub mod real;
pub mod rope;
pub mod sid;
