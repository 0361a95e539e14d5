//! The input of the first layer: `x[r] = E[token of row r]`, or a soft token's vector.
//!
//! One launch; 4 bytes move per element of `x [rows, hidden]`.

use super::args::EmbedArgs;
use super::driver::{Driver, Kernel, Launch, failed};
use crate::device::ops::DType;
use crate::error::Result;

/// Threads of a block, which serves one row.
const THREADS: u32 = 128;

/// The kernel that embeds tokens, resolved for a storage type.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    kernel: Kernel,
}

impl Embed {
    /// Resolves the kernel for tables and activations of `dtype`.
    ///
    /// # Errors
    /// If the type is neither bf16 nor f16, or the driver has no such kernel.
    pub fn new(driver: &mut dyn Driver, dtype: DType) -> Result<Embed> {
        let name = match dtype {
            DType::Bf16 => "embed_bf16",
            DType::F16 => "embed_f16",
            DType::F32 => return Err(failed("embed: activations of f32, the kernels have bf16 and f16")),
        };
        Ok(Embed { kernel: driver.kernel(name)? })
    }

    /// Writes the first `rows` rows of `x`, those that the step's counts have. `hidden` is a multiple of 8; `table`, `soft` and `x`
    /// begin at multiples of 16 bytes.
    ///
    /// # Errors
    /// If `hidden` is no multiple of 8; the driver's.
    pub fn enqueue(&self, driver: &mut dyn Driver, args: &EmbedArgs, rows: u32) -> Result<()> {
        if !args.hidden.is_multiple_of(8) {
            return Err(failed(format!(
                "embed: a hidden size of {}, it must be a multiple of 8",
                args.hidden
            )));
        }
        let grid = [rows.min(args.max_rows), 1, 1];
        if grid[0] == 0 {
            return Ok(());
        }
        // Not dependent: kernels behind it read the plan before they wait, so the plan must have arrived when it begins.
        driver.run(&Launch { kernel: self.kernel, grid, threads: THREADS, shared: 0, dependent: false }, args)
    }
}
