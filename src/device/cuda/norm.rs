//! The launch of `kernels/norm.cu`: `h = rms(x) * w`, rounded.

use super::args::NormArgs;
use super::driver::{DevicePtr, Driver, Kernel, Launch, failed};
use crate::device::ops::DType;
use crate::error::Result;

/// An RMS norm: `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[hidden]` float32.
    pub weight: DevicePtr,
    /// Added to the mean square.
    pub eps: f32,
}

/// Rows to norm.
#[derive(Clone, Copy, Debug)]
pub struct NormRows {
    /// The norm.
    pub norm: Norm,
    /// `[max_rows, hidden]` in `D`.
    pub x: DevicePtr,
    /// `[max_out, hidden]` in `D`.
    pub out: DevicePtr,
    /// `[max_out]` u32: the row of `x` behind each row of `out`; without it, the row of the same number.
    pub list: Option<DevicePtr>,
    /// A `RowGroup`: rows of `out`.
    pub group: DevicePtr,
    /// Elements of a row, a multiple of 8.
    pub hidden: usize,
    /// Rows of `x`.
    pub max_rows: usize,
    /// Rows of `out`.
    pub max_out: usize,
    /// Most rows of the group.
    pub bucket: usize,
}

/// The kernel of `kernels/norm.cu`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    kernel: Kernel,
}

/// Threads of a block, which takes one row.
const THREADS: u32 = 256;

impl RmsNorm {
    /// Finds the kernel for an element type.
    ///
    /// # Errors
    /// If there is none.
    pub fn new(driver: &mut dyn Driver, dtype: DType) -> Result<RmsNorm> {
        let name = ["rms_norm_bf16", "rms_norm_f16"][half_index(dtype)?];
        Ok(RmsNorm { kernel: driver.kernel(name)? })
    }

    /// Enqueues one launch of `bucket` blocks, which reads and writes `2 * hidden` bytes per row.
    ///
    /// # Errors
    /// The driver's, and [`Error::Device`](crate::Error::Device) if `hidden` is no multiple of 8.
    pub fn enqueue(&self, driver: &mut dyn Driver, rows: &NormRows) -> Result<()> {
        if !rows.hidden.is_multiple_of(8) {
            return Err(failed(format_args!(
                "a norm of rows of {} elements: expected a multiple of 8",
                rows.hidden
            )));
        }
        let args = NormArgs {
            x: rows.x,
            weight: rows.norm.weight,
            out: rows.out,
            list: rows.list.unwrap_or(DevicePtr::NULL),
            group: rows.group,
            hidden: rows.hidden as u32,
            eps: rows.norm.eps,
            max_rows: rows.max_rows as u32,
            max_out: rows.max_out as u32,
            reserved: [0; 2],
        };
        let launch = Launch {
            kernel: self.kernel,
            grid: [rows.bucket.max(1) as u32, 1, 1],
            threads: THREADS,
            shared: 0,
            dependent: true,
        };
        driver.run(&launch, &args)
    }
}

/// Place of an element type in tables of entries: bf16, f16.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) for float32, which no kernel stores.
pub(super) fn half_index(dtype: DType) -> Result<usize> {
    match dtype {
        DType::Bf16 => Ok(0),
        DType::F16 => Ok(1),
        DType::F32 => Err(failed("f32 activations: the CUDA device has bf16 and f16 only")),
    }
}
