//! The argument structs of all kernels, as `kernels/args.cuh` declares them; both sides assert the sizes.

use bytemuck::{Pod, Zeroable};

use super::driver::DevicePtr;

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
