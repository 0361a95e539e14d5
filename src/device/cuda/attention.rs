//! The launches of `kernels/attention.cu` and `kernels/combine.cu`: attention over the paged cache.
//!
//! [`AttentionPlan`] cuts a step into tiles; a layer is up to three launches. What they read is the plan's keys and values,
//! `4 * head_dim` bytes per key, key/value head and tile, and `8 * head_dim` bytes per packed query and split for partial results.

mod plan;

use std::mem::offset_of;

use super::args::{AttentionArgs, StepCounts};
use super::driver::{DevicePtr, Driver, Kernel, Launch};
use super::rope::no_head;
use crate::device::ops::DType;
use crate::error::Result;
pub use plan::{AttentionLimits, AttentionPlan};

/// Threads of a block of every kernel here.
const THREADS: u32 = 128;
/// Packed queries of a unit of partial results, and of a narrow tile.
pub const UNIT: u32 = 16;
/// Packed queries of a wide tile.
pub const WIDE: u32 = 64;

/// Sizes of the model, capacities of the buffers.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Blocks of the cache.
    pub cache_blocks: u32,
    /// Rows of a batch.
    pub max_rows: u32,
    /// Segments of a batch.
    pub max_segments: u32,
    /// Tiles of a batch, narrow or wide.
    pub max_items: u32,
    /// Entries of the block tables.
    pub max_table: u32,
    /// Units of partial results.
    pub max_units: u32,
}

impl AttentionShape {
    /// Bytes of the partial results: the sums of values, and the maxima and sums of weights.
    pub fn partial_bytes(&self) -> [usize; 2] {
        let lines = self.max_units as usize * self.kv_heads as usize * UNIT as usize;
        [lines * self.head_dim as usize * 4, lines * 8]
    }
}

/// What every layer of every step binds.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBuffers {
    /// `[rows, heads * head_dim]` in `D`.
    pub q: DevicePtr,
    /// As `q`.
    pub out: DevicePtr,
    /// Partial results; see [`AttentionShape::partial_bytes`].
    pub partial: [DevicePtr; 2],
    /// The plan's `StepCounts`.
    pub counts: DevicePtr,
    /// The plan's `SegmentInfo`s.
    pub segments: DevicePtr,
    /// The plan's narrow tiles.
    pub narrow: DevicePtr,
    /// The plan's wide tiles.
    pub wide: DevicePtr,
    /// The segment of each row, u32.
    pub row_segment: DevicePtr,
    /// The block tables, u32.
    pub blocks: DevicePtr,
}

/// What a layer binds.
#[derive(Clone, Copy, Debug)]
pub struct AttentionLayer {
    /// `[cache_blocks, kv_heads, 16, head_dim]` in `D`.
    pub k: DevicePtr,
    /// As `k`.
    pub v: DevicePtr,
    /// Keys that a row sees, itself included.
    pub window: Option<u32>,
}

/// Bounds of a step. What is bounded by 0 is not launched.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBucket {
    /// Narrow tiles.
    pub narrow: u32,
    /// Wide tiles.
    pub wide: u32,
    /// Rows of the batch, if any of them may have partial results.
    pub joined_rows: u32,
}

/// The kernels for a head width and an element type.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    narrow: Kernel,
    wide: Kernel,
    combine: Kernel,
    shape: AttentionShape,
    multiprocessors: u32,
}

/// Names of the narrow, the wide and the joining kernel.
fn names(dtype: DType, head_dim: u32) -> Option<[&'static str; 3]> {
    Some(match (dtype, head_dim) {
        (DType::Bf16, 16) => {
            ["attention_narrow_16_bf16", "attention_wide_16_bf16", "attention_combine_16_bf16"]
        }
        (DType::Bf16, 32) => {
            ["attention_narrow_32_bf16", "attention_wide_32_bf16", "attention_combine_32_bf16"]
        }
        (DType::Bf16, 64) => {
            ["attention_narrow_64_bf16", "attention_wide_64_bf16", "attention_combine_64_bf16"]
        }
        (DType::Bf16, 128) => {
            ["attention_narrow_128_bf16", "attention_wide_128_bf16", "attention_combine_128_bf16"]
        }
        (DType::F16, 16) => ["attention_narrow_16_f16", "attention_wide_16_f16", "attention_combine_16_f16"],
        (DType::F16, 32) => ["attention_narrow_32_f16", "attention_wide_32_f16", "attention_combine_32_f16"],
        (DType::F16, 64) => ["attention_narrow_64_f16", "attention_wide_64_f16", "attention_combine_64_f16"],
        (DType::F16, 128) => {
            ["attention_narrow_128_f16", "attention_wide_128_f16", "attention_combine_128_f16"]
        }
        _ => return None,
    })
}

impl Attention {
    /// Finds the kernels.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there are none for this type and head width.
    pub fn new(driver: &mut dyn Driver, dtype: DType, shape: AttentionShape) -> Result<Attention> {
        let names = names(dtype, shape.head_dim).ok_or_else(|| no_head(dtype, shape.head_dim as usize))?;
        Ok(Attention {
            narrow: driver.kernel(names[0])?,
            wide: driver.kernel(names[1])?,
            combine: driver.kernel(names[2])?,
            shape,
            multiprocessors: driver.properties().multiprocessors,
        })
    }

    /// Enqueues a layer's attention: at most one launch of narrow tiles, one of wide tiles, one that joins partial results.
    ///
    /// # Errors
    /// The driver's.
    pub fn enqueue(
        &self,
        driver: &mut dyn Driver,
        buffers: &AttentionBuffers,
        layer: &AttentionLayer,
        bucket: &AttentionBucket,
    ) -> Result<()> {
        let narrow_count = buffers.counts.add(offset_of!(StepCounts, narrow_items));
        let wide_count = buffers.counts.add(offset_of!(StepCounts, wide_items));
        let narrow = self.args(buffers, layer, buffers.narrow, narrow_count);
        let wide = self.args(buffers, layer, buffers.wide, wide_count);
        if bucket.narrow > 0 {
            driver.run(&self.tiles(self.narrow, bucket.narrow), &narrow)?;
        }
        if bucket.wide > 0 {
            driver.run(&self.tiles(self.wide, bucket.wide), &wide)?;
        }
        if bucket.joined_rows > 0 {
            driver.run(&self.join(bucket.joined_rows), &wide)?;
        }
        Ok(())
    }

    /// A launch over tiles times key/value heads: as many blocks as are resident at once, which stride over them.
    fn tiles(&self, kernel: Kernel, items: u32) -> Launch {
        let head_dim = self.shape.head_dim;
        let resident = self.multiprocessors * if head_dim < 64 { 3 } else { 2 };
        let keys = 4 * 4 * 16 * head_dim * 2;
        let lines = 4 * 16 * (head_dim + 8) * 4;
        let stats = 4 * 16 * 8;
        Launch {
            kernel,
            grid: [resident.min(items.saturating_mul(self.shape.kv_heads)), 1, 1],
            threads: THREADS,
            shared: keys + lines + stats,
            dependent: true,
        }
    }

    /// The launch that joins: `head_dim / 8` lanes per head along y; along x rows, which blocks stride over when there are many.
    fn join(&self, rows: u32) -> Launch {
        let heads = THREADS / (self.shape.head_dim / 8);
        let y = self.shape.heads.div_ceil(heads);
        let x = rows.min((8 * self.multiprocessors).div_ceil(y));
        Launch { kernel: self.combine, grid: [x, y, 1], threads: THREADS, shared: 0, dependent: true }
    }

    fn args(
        &self,
        buffers: &AttentionBuffers,
        layer: &AttentionLayer,
        items: DevicePtr,
        item_count: DevicePtr,
    ) -> AttentionArgs {
        let shape = &self.shape;
        AttentionArgs {
            q: buffers.q,
            k: layer.k,
            v: layer.v,
            out: buffers.out,
            partial: buffers.partial[0],
            partial_sums: buffers.partial[1],
            segments: buffers.segments,
            items,
            item_count,
            row_segment: buffers.row_segment,
            blocks: buffers.blocks,
            counts: buffers.counts,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            cache_blocks: shape.cache_blocks,
            max_rows: shape.max_rows,
            max_segments: shape.max_segments,
            max_items: shape.max_items,
            max_table: shape.max_table,
            max_units: shape.max_units,
            window: layer.window.unwrap_or(0),
            scale: std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt(),
            reserved: [0; 2],
        }
    }
}
