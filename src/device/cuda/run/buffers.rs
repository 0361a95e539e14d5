//! What the CUDA device is made of: which shapes it serves, and the buffers that its launches share.

use crate::device::cuda::attention::{Attention, AttentionLayer, AttentionShape};
use crate::device::cuda::driver::{DevicePtr, Driver};
use crate::device::cuda::memory::{self, RowSizes};
use crate::device::cuda::products::{Activations, Products};
use crate::device::cuda::rope::RopeShape;
use crate::device::ops::{DType, DeviceConfig, Shape};
use crate::error::{Error, Result};

/// Buffers that are sized by the rows of a step.
pub(super) struct Buffers {
    pub x: Activations,
    /// `[rows, q + 2 kv]` float32.
    pub qkv: DevicePtr,
    pub q: DevicePtr,
    pub attended: Activations,
    pub gated: Activations,
    pub head_rows: Activations,
    pub partial: DevicePtr,
    pub partial_sums: DevicePtr,
    /// `[logit_rows, vocab]` float32.
    pub logits: DevicePtr,
    /// `[rows]` float32: normalisers over the vocabulary.
    pub norms: DevicePtr,
    /// `[codes]` float32: logits of codebooks.
    pub code_logits: DevicePtr,
    /// Logits of evaluation, which no request asks for, and how many there is room for: the only buffer that grows.
    pub full_logits: (DevicePtr, usize),
}

/// Refuses types and shapes that no kernel serves.
pub(super) fn check_served(config: &DeviceConfig) -> Result<()> {
    let s = &config.shape;
    if config.dtype == DType::F32 {
        return Err(Error::Unsupported(
            "the CUDA device computes in bf16 or f16; f32 is served by the CPU (--dtype bf16)".to_owned(),
        ));
    }
    if ![16, 32, 64, 128].contains(&s.head_dim) {
        return Err(Error::Unsupported(format!(
            "heads of {} values: the CUDA kernels serve 16, 32, 64 and 128",
            s.head_dim
        )));
    }
    for (name, size) in [("hidden", s.hidden), ("ffn", s.ffn)] {
        if !size.is_multiple_of(8) {
            return Err(Error::Unsupported(format!(
                "{name} is {size}: the CUDA kernels need a multiple of 8"
            )));
        }
    }
    Ok(())
}

pub(super) fn rope_shape(
    shape: &Shape,
    cache_blocks: usize,
    max_rows: usize,
    inv_freq: DevicePtr,
) -> RopeShape {
    RopeShape {
        heads: shape.heads as u32,
        kv_heads: shape.kv_heads as u32,
        cache_blocks: cache_blocks as u32,
        max_rows: max_rows as u32,
        eps: shape.eps,
        scale: shape.rope.scale,
        inv_freq,
    }
}

pub(super) fn attention_shape(shape: &Shape, cache_blocks: usize, sizes: &RowSizes) -> AttentionShape {
    AttentionShape {
        heads: shape.heads as u32,
        kv_heads: shape.kv_heads as u32,
        head_dim: shape.head_dim as u32,
        cache_blocks: cache_blocks as u32,
        max_rows: sizes.rows as u32,
        max_segments: sizes.rows as u32,
        max_items: sizes.items as u32,
        // The plan's tables are as long as they are; each is checked against its own segment.
        max_table: u32::MAX,
        max_units: sizes.units as u32,
    }
}

/// Every layer as attention binds it.
pub(super) fn attention_layers(
    driver: &mut dyn Driver,
    attention: &Attention,
    cache: &[[DevicePtr; 2]],
    shape: &Shape,
) -> Result<Vec<AttentionLayer>> {
    let layers = cache.iter().zip(&shape.window);
    layers.map(|(&cache, &window)| attention.layer(driver, cache, window)).collect()
}

/// Keys and values of every layer, zeroed.
pub(super) fn allocate_cache(
    driver: &mut dyn Driver,
    shape: &Shape,
    dtype: DType,
    blocks: usize,
) -> Result<Vec<[DevicePtr; 2]>> {
    let half = memory::block_bytes(shape, dtype) / shape.layers / 2 * blocks;
    let at = driver.allocate("key/value cache", &vec![half; 2 * shape.layers])?;
    // Unused places are multiplied by weights of exactly 0, which NaN would survive.
    for &at in &at {
        driver.fill(at, 0, half)?;
    }
    Ok(at.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect())
}

impl Buffers {
    pub fn new(
        driver: &mut dyn Driver,
        products: &Products,
        shape: &Shape,
        dtype: DType,
        sizes: &RowSizes,
    ) -> Result<Buffers> {
        let at = driver.allocate("step buffers", &sizes.bytes(shape, dtype))?;
        let q = shape.heads * shape.head_dim;
        Ok(Buffers {
            x: products.activations(driver, at[0], sizes.rows, shape.hidden)?,
            qkv: at[1],
            q: at[2],
            attended: products.activations(driver, at[3], sizes.rows, q)?,
            gated: products.activations(driver, at[4], sizes.rows, shape.ffn)?,
            head_rows: products.activations(driver, at[5], sizes.head_rows, shape.hidden)?,
            partial: at[6],
            partial_sums: at[7],
            logits: at[8],
            norms: at[9],
            code_logits: at[10],
            full_logits: (DevicePtr::NULL, 0),
        })
    }

    /// Makes sure that `floats` logits of evaluation can be held; answers whether they moved.
    pub fn hold_full_logits(&mut self, driver: &mut dyn Driver, floats: usize) -> Result<bool> {
        if floats <= self.full_logits.1 {
            return Ok(false);
        }
        let (at, room) = std::mem::replace(&mut self.full_logits, (DevicePtr::NULL, 0));
        if room > 0 {
            driver.free(at)?;
        }
        let floats = floats.next_power_of_two();
        self.full_logits = (driver.allocate("evaluation logits", &[floats * 4])?[0], floats);
        Ok(true)
    }
}
