//! Kernel-level tests: each family of kernels against its reference, on every driver present.

mod drivers;
mod embed;
mod emulator;
mod sample;
