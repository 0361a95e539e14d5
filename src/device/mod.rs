//! Devices: the list of operations ([`ops`]) and those who carry them out ([`cpu`]).

mod check;
pub mod cpu;
#[cfg(any(feature = "cuda", feature = "emulated"))]
pub mod cuda;
mod elementary;
pub mod hash;
pub mod ops;
pub mod random;
