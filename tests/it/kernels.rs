//! Kernel-level tests: each family of kernels against its reference, on every driver present.

mod attention;
mod emulator;
mod rope;
