//! Kernel-level tests: each family of kernels against its reference, on every driver present.

mod emulator;
mod norm;
mod products;
