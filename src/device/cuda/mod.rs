//! The CUDA device: the operations as kernels, launched through a [`driver`].

pub mod args;
pub mod attention;
pub mod driver;
#[cfg(feature = "emulated")]
pub mod emulated;
pub mod rope;
