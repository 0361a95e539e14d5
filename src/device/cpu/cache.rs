//! The paged key/value cache: keys and values of every layer in `D`.
//!
//! A block holds sixteen tokens, and there are sixteen lanes. Keys lie transposed, `[block, kv_head, head_dim, token]`, so that one register
//! holds one dimension of a whole block and scores need no sum over lanes; values lie as they come, `[block, kv_head, token, head_dim]`
//! (filled up to whole registers), so that results are summed key by key. Zeroed pages cost nothing until a token is written.

use half::f16;

use super::buffers::{Aligned, Disjoint};
use super::simd::LANES;
use crate::device::ops::{DType, Shape};
use crate::kv::BLOCK_TOKENS;

const _: () = assert!(BLOCK_TOKENS == LANES, "a block of keys is one register");

/// Where a head of a block lies.
#[derive(Clone, Copy)]
pub(super) struct CacheShape {
    kv_heads: usize,
    pub(super) head_dim: usize,
    /// `head_dim`, filled up to whole registers.
    pub(super) padded: usize,
}

impl CacheShape {
    pub(super) fn new(shape: &Shape) -> CacheShape {
        let padded = shape.head_dim.next_multiple_of(LANES);
        CacheShape { kv_heads: shape.kv_heads, head_dim: shape.head_dim, padded }
    }

    /// The first element of a block's keys of one head.
    pub(super) fn keys(&self, block: usize, head: usize) -> usize {
        (block * self.kv_heads + head) * self.head_dim * BLOCK_TOKENS
    }

    /// The first element of a block's values of one head.
    pub(super) fn values(&self, block: usize, head: usize) -> usize {
        (block * self.kv_heads + head) * self.padded * BLOCK_TOKENS
    }
}

/// One layer's keys or values.
pub(super) enum Arena {
    /// Float32.
    Full(Aligned<f32>),
    /// The bits of bfloat16 or half floats.
    Half(Aligned<u16>),
}

impl Arena {
    fn zeroed(dtype: DType, len: usize) -> Arena {
        match dtype {
            DType::F32 => Arena::Full(Aligned::zeroed(len)),
            DType::Bf16 | DType::F16 => Arena::Half(Aligned::zeroed(len)),
        }
    }

    fn writer(&mut self) -> ArenaWriter<'_> {
        match self {
            Arena::Full(values) => ArenaWriter::Full(Disjoint::new(values)),
            Arena::Half(values) => ArenaWriter::Half(Disjoint::new(values)),
        }
    }
}

/// Keys and values of all layers.
pub(super) struct Cache {
    pub(super) shape: CacheShape,
    dtype: DType,
    layers: Vec<[Arena; 2]>,
}

impl Cache {
    pub(super) fn new(shape: &Shape, dtype: DType, blocks: usize) -> Cache {
        let sizes = CacheShape::new(shape);
        let layer =
            |_| [Arena::zeroed(dtype, sizes.keys(blocks, 0)), Arena::zeroed(dtype, sizes.values(blocks, 0))];
        Cache { shape: sizes, dtype, layers: (0..shape.layers).map(layer).collect() }
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> &[Arena; 2] {
        &self.layers[layer]
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Writes into a layer from several tasks.
    pub(super) fn writer(&mut self, layer: usize) -> CacheWriter<'_> {
        let [keys, values] = &mut self.layers[layer];
        CacheWriter { shape: self.shape, dtype: self.dtype, keys: keys.writer(), values: values.writer() }
    }
}

enum ArenaWriter<'a> {
    Full(Disjoint<'a, f32>),
    Half(Disjoint<'a, u16>),
}

/// Writes keys and values of one layer.
pub(super) struct CacheWriter<'a> {
    shape: CacheShape,
    dtype: DType,
    keys: ArenaWriter<'a>,
    values: ArenaWriter<'a>,
}

impl CacheWriter<'_> {
    /// Puts one head of one token, already rounded to `D`, into its slot.
    ///
    /// # Panics
    /// If the slot lies outside.
    ///
    /// # Safety
    /// Nobody else uses this head of the layer at the same time.
    pub(super) unsafe fn put(&self, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        let (block, place) = (slot / BLOCK_TOKENS, slot % BLOCK_TOKENS);
        let start = self.shape.keys(block, head);
        // SAFETY: the caller's promise: a head's part of a block belongs to that head.
        unsafe { self.scatter(&self.keys, start + place, BLOCK_TOKENS, key) };
        let start = self.shape.values(block, head) + place * self.shape.padded;
        // SAFETY: as above.
        unsafe { self.scatter(&self.values, start, 1, value) };
    }

    unsafe fn scatter(&self, to: &ArenaWriter<'_>, start: usize, step: usize, from: &[f32]) {
        let range = start..start + (from.len() - 1) * step + 1;
        match to {
            ArenaWriter::Full(to) => {
                // SAFETY: the caller's promise.
                let to = unsafe { to.part(range) };
                to.iter_mut().step_by(step).zip(from).for_each(|(t, v)| *t = *v);
            }
            ArenaWriter::Half(to) => {
                // SAFETY: the caller's promise.
                let to = unsafe { to.part(range) };
                let places = to.iter_mut().step_by(step).zip(from);
                match self.dtype {
                    DType::Bf16 => places.for_each(|(t, v)| *t = (v.to_bits() >> 16) as u16),
                    _ => places.for_each(|(t, v)| *t = f16::from_f32(*v).to_bits()),
                }
            }
        }
    }
}
