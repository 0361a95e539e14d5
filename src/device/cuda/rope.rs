//! The launch of `kernels/rope.cu`: q/k norm, rotation, and the write of keys and values into the cache.

use super::args::RopeArgs;
use super::driver::{DevicePtr, Driver, Kernel, Launch, failed};
use crate::device::ops::DType;
use crate::error::Result;

/// Threads of a block, which takes one row.
const THREADS: u32 = 128;

/// The sizes and constants of rope that all layers share.
#[derive(Clone, Copy, Debug)]
pub struct RopeShape {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Blocks of the cache.
    pub cache_blocks: u32,
    /// Capacity of the batch.
    pub max_rows: u32,
    /// Added to the mean square of a head.
    pub eps: f32,
    /// Scale of sine and cosine.
    pub scale: f32,
    /// `[head_dim / 2]` float32.
    pub inv_freq: DevicePtr,
}

/// What a step and a layer bind.
#[derive(Clone, Copy, Debug)]
pub struct RopeLayer {
    /// `[rows, (heads + 2 kv_heads) * head_dim]` float32.
    pub qkv: DevicePtr,
    /// Weights of the norms of q and k, `[head_dim]` float32 each, if the model has them.
    pub norms: Option<[DevicePtr; 2]>,
    /// The plan's `RowInfo`s.
    pub rows: DevicePtr,
    /// The plan's `StepCounts`.
    pub counts: DevicePtr,
    /// `[rows, heads * head_dim]` in `D`.
    pub q: DevicePtr,
    /// `[cache_blocks, kv_heads, 16, head_dim]` in `D`.
    pub k: DevicePtr,
    /// As `k`.
    pub v: DevicePtr,
}

/// The kernel of `kernels/rope.cu` for a head width and an element type.
#[derive(Clone, Copy, Debug)]
pub struct RopeCache {
    kernel: Kernel,
    shape: RopeShape,
}

impl RopeCache {
    /// Finds the kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is none for this type and head width.
    pub fn new(
        driver: &mut dyn Driver,
        dtype: DType,
        head_dim: usize,
        shape: RopeShape,
    ) -> Result<RopeCache> {
        let name = match (dtype, head_dim) {
            (DType::Bf16, 16) => "rope_cache_16_bf16",
            (DType::Bf16, 32) => "rope_cache_32_bf16",
            (DType::Bf16, 64) => "rope_cache_64_bf16",
            (DType::Bf16, 128) => "rope_cache_128_bf16",
            (DType::F16, 16) => "rope_cache_16_f16",
            (DType::F16, 32) => "rope_cache_32_f16",
            (DType::F16, 64) => "rope_cache_64_f16",
            (DType::F16, 128) => "rope_cache_128_f16",
            _ => return Err(no_head(dtype, head_dim)),
        };
        Ok(RopeCache { kernel: driver.kernel(name)?, shape })
    }

    /// Enqueues one launch of `bucket` blocks: per row `(heads + 2 kv_heads) * head_dim` elements, 4 bytes read and 2 written each.
    ///
    /// # Errors
    /// The driver's.
    pub fn enqueue(&self, driver: &mut dyn Driver, layer: &RopeLayer, bucket: u32) -> Result<()> {
        let [q_norm, k_norm] = layer.norms.unwrap_or([DevicePtr::NULL; 2]);
        let shape = &self.shape;
        let args = RopeArgs {
            qkv: layer.qkv,
            q_norm,
            k_norm,
            inv_freq: shape.inv_freq,
            rows: layer.rows,
            counts: layer.counts,
            q: layer.q,
            k: layer.k,
            v: layer.v,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            cache_blocks: shape.cache_blocks,
            max_rows: shape.max_rows,
            eps: shape.eps,
            scale: shape.scale,
        };
        let launch = Launch {
            kernel: self.kernel,
            grid: [bucket, 1, 1],
            threads: THREADS,
            shared: 0,
            dependent: true,
        };
        driver.run(&launch, &args)
    }
}

/// What is said of a head width that no kernel was compiled for.
pub(super) fn no_head(dtype: DType, head_dim: usize) -> crate::error::Error {
    failed(format_args!("heads of {head_dim} elements of {dtype}: expected 16, 32, 64 or 128 of bf16 or f16"))
}
