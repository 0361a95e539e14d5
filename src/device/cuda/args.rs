//! The argument structs of all kernels, as `kernels/args.cuh` declares them; both sides assert the sizes.

use bytemuck::{Pod, Zeroable};

use super::driver::{DevicePtr, TensorMap};

/// `probe`: `y[i] = x[i] * scale + offset`, each operation rounded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ProbeArgs {
    /// float `[count]`
    pub x: DevicePtr,
    /// float `[count]`
    pub y: DevicePtr,
    /// Elements.
    pub count: u64,
    /// Factor.
    pub scale: f32,
    /// Summand.
    pub offset: f32,
}
const _: () = assert!(size_of::<ProbeArgs>() == 32);

/// `check_*`: each kernel of `kernels/checks.cu` says what it reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct CheckArgs {
    /// First input.
    pub input: DevicePtr,
    /// Second input.
    pub input2: DevicePtr,
    /// First output.
    pub output: DevicePtr,
    /// Second output.
    pub output2: DevicePtr,
    /// Elements.
    pub n: u64,
    /// Variant.
    pub mode: u32,
    /// Zero.
    pub unused: u32,
}
const _: () = assert!(size_of::<CheckArgs>() == 48);

/// `check_wgmma_*`: `output [64, N] = a [64, k] b [N, k]^T`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ProductArgs {
    /// `[64, k]`, boxes of 64 rows.
    pub a: TensorMap,
    /// `[N, k]`, boxes of N rows.
    pub b: TensorMap,
    /// float `[64, N]`
    pub output: DevicePtr,
    /// Length of the sums.
    pub k: u64,
    /// Zero.
    pub unused: [u64; 6],
}
const _: () = assert!(size_of::<ProductArgs>() == 320);
