//! The launches of `kernels/{attention,attention_hopper,combine}.cu`: attention over the paged cache.
//!
//! [`AttentionPlan`] cuts a step into tiles; a layer is up to three launches. What they read is the plan's keys and values,
//! `4 * head_dim` bytes per key, key/value head and tile, and `8 * head_dim` bytes per packed query and split for partial results.

mod plan;

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::args::{AttentionArgs, StepCounts};
use super::driver::{DevicePtr, Driver, Kernel, Launch, TensorMap, TensorMapSpec, failed};
use super::rope::no_head;
use crate::device::ops::DType;
use crate::error::Result;
use crate::kv::BLOCK_TOKENS;
pub use plan::{AttentionLimits, AttentionPlan};

/// Threads of a block of every kernel here but `attention_hopper`.
const THREADS: u32 = 128;
/// Packed queries of a unit of partial results, and of a narrow tile.
pub const UNIT: u32 = 16;
/// Packed queries of a wide tile of `attention_wide`, and of `attention_hopper`.
pub const WIDE: [u32; 2] = [64, 128];

/// Arguments of `attention_hopper`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct AttentionBulkArgs {
    k: TensorMap,
    v: TensorMap,
    attention: AttentionArgs,
    reserved: [u32; 12],
}
const _: () = assert!(size_of::<AttentionBulkArgs>() == 448, "kernels/args.cuh says otherwise");

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

/// What a layer binds: [`Attention::layer`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionLayer {
    k: DevicePtr,
    v: DevicePtr,
    window: Option<u32>,
    /// Both, where the device has bulk copies.
    maps: Option<[TensorMap; 2]>,
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
    wide: Wide,
    combine: Kernel,
    shape: AttentionShape,
    multiprocessors: u32,
    bf16: bool,
    reproducible: bool,
}

/// What computes wide tiles.
#[derive(Clone, Copy, Debug)]
enum Wide {
    /// `attention_wide`.
    Mma(Kernel),
    /// `attention_hopper`.
    Bulk(Kernel),
}

/// The kernel of bulk copies and products of warpgroups.
fn bulk_name(dtype: DType, head_dim: u32) -> Option<&'static str> {
    Some(match (dtype, head_dim) {
        (DType::Bf16, 64) => "attention_hopper_64_bf16",
        (DType::Bf16, 128) => "attention_hopper_128_bf16",
        (DType::F16, 64) => "attention_hopper_64_f16",
        (DType::F16, 128) => "attention_hopper_128_f16",
        _ => return None,
    })
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
    /// `reproducible`: a row's result does not depend on what shares a step with it, which only `attention_wide` keeps.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there are none for this type and head width.
    pub fn new(
        driver: &mut dyn Driver,
        dtype: DType,
        shape: AttentionShape,
        reproducible: bool,
    ) -> Result<Attention> {
        let names = names(dtype, shape.head_dim).ok_or_else(|| no_head(dtype, shape.head_dim as usize))?;
        let wide = Wide::Mma(driver.kernel(names[1])?);
        // Rows of the cache are the coordinates of bulk copies.
        let rows = u64::from(shape.cache_blocks) * u64::from(shape.kv_heads) * BLOCK_TOKENS as u64;
        let addressable = rows < i32::MAX as u64;
        let bulk = match (driver.properties().capability, bulk_name(dtype, shape.head_dim)) {
            ((9, 0), Some(name)) if addressable && !reproducible => driver.kernel(name).ok(),
            _ => None,
        };
        Ok(Attention {
            narrow: driver.kernel(names[0])?,
            wide: bulk.map_or(wide, Wide::Bulk),
            combine: driver.kernel(names[2])?,
            shape,
            multiprocessors: driver.properties().multiprocessors,
            bf16: dtype == DType::Bf16,
            reproducible,
        })
    }

    /// Packed queries of a wide tile.
    pub fn wide(&self) -> u32 {
        WIDE[usize::from(matches!(self.wide, Wide::Bulk(_)))]
    }

    /// What tiles are cut for.
    pub fn limits(&self) -> AttentionLimits {
        let shape = &self.shape;
        AttentionLimits {
            multiprocessors: self.multiprocessors,
            group: shape.heads / shape.kv_heads,
            kv_heads: shape.kv_heads,
            wide: self.wide(),
            max_items: shape.max_items,
            max_units: shape.max_units,
            reproducible: self.reproducible,
        }
    }

    /// Describes a layer.
    ///
    /// `k`, `v`: `[cache_blocks, kv_heads, 16, head_dim]` in `D`. `window`: keys that a row sees, itself included.
    ///
    /// # Errors
    /// The driver's.
    pub fn layer(
        &self,
        driver: &mut dyn Driver,
        [k, v]: [DevicePtr; 2],
        window: Option<u32>,
    ) -> Result<AttentionLayer> {
        let shape = &self.shape;
        let mut map = |base| {
            driver.tensor_map(&TensorMapSpec {
                base,
                rows: u64::from(shape.cache_blocks) * u64::from(shape.kv_heads) * BLOCK_TOKENS as u64,
                columns: u64::from(shape.head_dim),
                stride: u64::from(shape.head_dim) * 2,
                box_rows: BLOCK_TOKENS as u32,
                bf16: self.bf16,
            })
        };
        let maps = match self.wide {
            Wide::Mma(_) => None,
            Wide::Bulk(_) => Some([map(k)?, map(v)?]),
        };
        Ok(AttentionLayer { k, v, window, maps })
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
        match (self.wide, layer.maps) {
            _ if bucket.wide == 0 => {}
            (Wide::Bulk(kernel), Some([k, v])) => {
                let args = AttentionBulkArgs { k, v, attention: wide, reserved: [0; 12] };
                driver.run(&self.bulk_tiles(kernel, bucket.wide), &args)?;
            }
            (Wide::Mma(kernel), None) => driver.run(&self.tiles(kernel, bucket.wide), &wide)?,
            _ => return Err(failed("a layer that another set of kernels has described")),
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

    /// The same of `attention_hopper`, whose queries and two stages of keys and values leave no room for another block at head_dim 128.
    fn bulk_tiles(&self, kernel: Kernel, items: u32) -> Launch {
        let line = self.shape.head_dim * 2;
        Launch {
            kernel,
            grid: [self.multiprocessors.min(items.saturating_mul(self.shape.kv_heads)), 1, 1],
            threads: 384,
            shared: WIDE[1] * line + 2 * 2 * 128 * line,
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
