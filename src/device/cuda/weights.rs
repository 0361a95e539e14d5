//! Weights on the device: one arena, every matrix in the activation type `D`, every vector in float32.
//!
//! `q`, `k`, `v` lie one below the other, and so do gate and up: each pair or triple is one product. A tied head is the embedding itself.
//! Codebooks whose tokens are not neighbours in the vocabulary are copied out of the head, so that each is a matrix of its own.
//! A weight stored in another type than `D` is rounded to `D` (or widened, exactly) while it is copied.

use std::collections::HashMap;

use half::slice::HalfFloatSliceExt;

use super::driver::{DevicePtr, Driver, Pinned};
use super::products::{Matrix, Products};
use crate::catalog::Layout;
use crate::device::ops::{DType, LayerWeights, Shape, Tensor, Weights};
use crate::error::Result;
use crate::ids::TypeId;

/// Bytes that are staged at once.
const CHUNK: usize = 32 << 20;

/// The weights of one layer.
pub(super) struct Layer {
    /// `[hidden]` float32.
    pub input_norm: DevicePtr,
    /// `[q + 2 kv, hidden]`.
    pub qkv: Matrix,
    /// `[q + 2 kv]` float32, or nowhere.
    pub qkv_bias: DevicePtr,
    /// `[head_dim]` float32 each, or nowhere.
    pub q_norm: DevicePtr,
    /// See `q_norm`.
    pub k_norm: DevicePtr,
    /// `[hidden, q]`.
    pub o: Matrix,
    /// `[hidden]` float32, or nowhere.
    pub o_bias: DevicePtr,
    /// `[hidden]` float32.
    pub post_norm: DevicePtr,
    /// `[2 ffn, hidden]`: gate, then up.
    pub gate_up: Matrix,
    /// `[hidden, ffn]`.
    pub down: Matrix,
}

/// All weights.
pub(super) struct DeviceWeights {
    /// `[vocab, hidden]`.
    pub embed: DevicePtr,
    pub layers: Vec<Layer>,
    /// `[hidden]` float32.
    pub norm: DevicePtr,
    /// `[vocab, hidden]`.
    pub head: Matrix,
    /// `[head_dim / 2]` float32.
    pub inv_freq: DevicePtr,
    /// Codebooks copied out of the head, by type and level.
    packed: HashMap<(TypeId, u8), Matrix>,
}

/// A piece of the arena and the tensors that lie in it one after the other.
enum Piece<'a> {
    /// Rounded to `D`.
    Matrix(Vec<&'a Tensor>),
    /// Widened to float32.
    Vector(Vec<&'a Tensor>),
    /// Float32 as they are.
    Floats(&'a [f32]),
    /// Rows of a matrix, rounded to `D`.
    Rows(&'a Tensor, Vec<u32>),
}

impl Piece<'_> {
    fn bytes(&self, dtype: DType) -> usize {
        let elements =
            |tensors: &[&Tensor]| tensors.iter().map(|t| t.shape().iter().product::<usize>()).sum::<usize>();
        match self {
            Piece::Matrix(tensors) => elements(tensors) * dtype.size(),
            Piece::Vector(tensors) => elements(tensors) * 4,
            Piece::Floats(values) => values.len() * 4,
            Piece::Rows(tensor, rows) => rows.len() * tensor.shape()[1] * dtype.size(),
        }
    }
}

/// Whether two tensors are the same bytes.
fn same(a: &Tensor, b: &Tensor) -> bool {
    std::ptr::eq(a.bytes(), b.bytes())
}

/// The pieces of a layer, in the order in which [`Layer`] is put together.
fn layer_pieces<'a>(w: &'a LayerWeights, pieces: &mut Vec<Piece<'a>>) {
    let vector = |t: Option<&'a Tensor>| Piece::Vector(t.into_iter().collect());
    pieces.push(Piece::Vector(vec![&w.input_norm]));
    pieces.push(Piece::Matrix(vec![&w.q, &w.k, &w.v]));
    pieces.push(Piece::Vector(w.qkv_bias.iter().flatten().collect()));
    pieces.push(vector(w.qk_norm.as_ref().map(|n| &n[0])));
    pieces.push(vector(w.qk_norm.as_ref().map(|n| &n[1])));
    pieces.push(Piece::Matrix(vec![&w.o]));
    pieces.push(vector(w.o_bias.as_ref()));
    pieces.push(Piece::Vector(vec![&w.post_norm]));
    pieces.push(Piece::Matrix(vec![&w.gate, &w.up]));
    pieces.push(Piece::Matrix(vec![&w.down]));
}

/// Codebooks whose tokens are a list.
fn listed(layout: Option<&Layout>) -> Vec<((TypeId, u8), Vec<u32>)> {
    let mut found = Vec::new();
    for (t, kind) in layout.iter().flat_map(|layout| layout.types.iter().enumerate()) {
        for (level, tokens) in kind.levels.iter().enumerate() {
            if tokens.contiguous().is_none() {
                let rows = (0..tokens.len()).map(|code| tokens.token(code as u16).0).collect();
                found.push(((TypeId(t as u16), level as u8), rows));
            }
        }
    }
    found
}

fn pieces<'a>(weights: &'a Weights, shape: &'a Shape, layout: Option<&Layout>) -> Vec<Piece<'a>> {
    let mut pieces = vec![
        Piece::Matrix(vec![&weights.embed]),
        Piece::Vector(vec![&weights.norm]),
        Piece::Floats(&shape.rope.inv_freq),
        Piece::Matrix(if same(&weights.embed, &weights.head) { vec![] } else { vec![&weights.head] }),
    ];
    pieces.extend(listed(layout).into_iter().map(|(_, rows)| Piece::Rows(&weights.head, rows)));
    weights.layers.iter().for_each(|layer| layer_pieces(layer, &mut pieces));
    pieces
}

/// Bytes that the weights take on the device.
pub(super) fn bytes(weights: &Weights, shape: &Shape, dtype: DType, layout: Option<&Layout>) -> usize {
    pieces(weights, shape, layout).iter().map(|piece| piece.bytes(dtype).next_multiple_of(256)).sum()
}

impl DeviceWeights {
    /// Copies the weights to the device.
    ///
    /// # Errors
    /// The driver's; [`crate::Error::Unsupported`] for a matrix that no product serves.
    pub(super) fn upload(
        driver: &mut dyn Driver,
        products: &Products,
        weights: &Weights,
        shape: &Shape,
        dtype: DType,
        layout: Option<&Layout>,
    ) -> Result<DeviceWeights> {
        let pieces = pieces(weights, shape, layout);
        let sizes: Vec<usize> = pieces.iter().map(|piece| piece.bytes(dtype)).collect();
        let at = driver.allocate("weights", &sizes)?;
        let mut staging = Staging { pinned: driver.pin(CHUNK)?, filled: 0, to: DevicePtr::NULL };
        for (piece, &to) in pieces.iter().zip(&at) {
            staging.piece(driver, piece, to, dtype)?;
        }
        let present = |i: usize| if sizes[i] > 0 { at[i] } else { DevicePtr::NULL };
        let (hidden, vocab) = (shape.hidden, shape.vocab);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let head = if sizes[3] > 0 { at[3] } else { at[0] };
        let listed = listed(layout);
        let mut next = 4 + listed.len();
        let packed = listed
            .into_iter()
            .enumerate()
            .map(|(i, (key, rows))| Ok((key, products.matrix(driver, at[4 + i], rows.len(), hidden)?)))
            .collect::<Result<_>>()?;
        let mut layers = Vec::with_capacity(shape.layers);
        for _ in 0..shape.layers {
            layers.push(Layer {
                input_norm: at[next],
                qkv: products.matrix(driver, at[next + 1], q + 2 * kv, hidden)?,
                qkv_bias: present(next + 2),
                q_norm: present(next + 3),
                k_norm: present(next + 4),
                o: products.matrix(driver, at[next + 5], hidden, q)?,
                o_bias: present(next + 6),
                post_norm: at[next + 7],
                gate_up: products.matrix(driver, at[next + 8], 2 * shape.ffn, hidden)?,
                down: products.matrix(driver, at[next + 9], hidden, shape.ffn)?,
            });
            next += 10;
        }
        let head = products.matrix(driver, head, vocab, hidden)?;
        Ok(DeviceWeights { embed: at[0], layers, norm: at[1], head, inv_freq: at[2], packed })
    }

    /// The head's rows for one codebook.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn codebook(
        &self,
        driver: &mut dyn Driver,
        products: &Products,
        layout: &Layout,
        (item_type, level): (TypeId, u8),
    ) -> Result<Matrix> {
        if let Some(matrix) = self.packed.get(&(item_type, level)) {
            return Ok(*matrix);
        }
        let tokens = &layout.types[item_type.index()].levels[level as usize];
        products.rows_of(driver, &self.head, tokens.token(0).index(), tokens.len())
    }
}

/// A pinned buffer that fills up and is then copied.
struct Staging {
    pinned: Pinned,
    filled: usize,
    /// Where the first byte of the buffer goes.
    to: DevicePtr,
}

impl Staging {
    fn piece(
        &mut self,
        driver: &mut dyn Driver,
        piece: &Piece<'_>,
        to: DevicePtr,
        dtype: DType,
    ) -> Result<()> {
        self.to = to;
        match piece {
            Piece::Matrix(tensors) => {
                tensors.iter().try_for_each(|t| self.convert(driver, t.dtype(), t.bytes(), dtype))?;
            }
            Piece::Vector(tensors) => {
                tensors.iter().try_for_each(|t| self.convert(driver, t.dtype(), t.bytes(), DType::F32))?;
            }
            Piece::Floats(values) => {
                self.convert(driver, DType::F32, bytemuck::cast_slice(values), DType::F32)?;
            }
            Piece::Rows(tensor, rows) => {
                let width = tensor.shape()[1] * tensor.dtype().size();
                for &row in rows {
                    let bytes = &tensor.bytes()[row as usize * width..][..width];
                    self.convert(driver, tensor.dtype(), bytes, dtype)?;
                }
            }
        }
        self.flush(driver)
    }

    /// Appends elements, converted.
    fn convert(&mut self, driver: &mut dyn Driver, from: DType, bytes: &[u8], to: DType) -> Result<()> {
        let per_chunk = CHUNK / 4 * from.size();
        for bytes in bytes.chunks(per_chunk) {
            let len = bytes.len() / from.size() * to.size();
            if self.filled + len > self.pinned.bytes().len() {
                self.flush(driver)?;
            }
            let out = &mut self.pinned.bytes_mut()[self.filled..self.filled + len];
            if from == to {
                out.copy_from_slice(bytes);
            } else {
                convert(from, bytes, to, out);
            }
            self.filled += len;
        }
        Ok(())
    }

    fn flush(&mut self, driver: &mut dyn Driver) -> Result<()> {
        if self.filled > 0 {
            driver.copy_in(self.to, &self.pinned, 0..self.filled)?;
            // The buffer is filled again at once.
            driver.synchronize()?;
            self.to = self.to.add(self.filled);
            self.filled = 0;
        }
        Ok(())
    }
}

/// Elements of one type as another, rounded to nearest even.
fn convert(from: DType, bytes: &[u8], to: DType, out: &mut [u8]) {
    use half::{bf16, f16};
    let floats: Vec<f32> = match from {
        // The bytes of a mapped file are aligned to their element, and so are the chunks of them.
        DType::F32 => bytemuck::cast_slice(bytes).to_vec(),
        DType::Bf16 => bytemuck::cast_slice::<u8, bf16>(bytes).iter().map(|v| v.to_f32()).collect(),
        DType::F16 => {
            let halves: &[f16] = bytemuck::cast_slice(bytes);
            let mut floats = vec![0.0; halves.len()];
            halves.convert_to_f32_slice(&mut floats);
            floats
        }
    };
    match to {
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(&floats)),
        DType::Bf16 => {
            for (out, v) in out.chunks_exact_mut(2).zip(floats) {
                out.copy_from_slice(&bf16::from_f32(v).to_le_bytes());
            }
        }
        DType::F16 => {
            for (out, v) in out.chunks_exact_mut(2).zip(floats) {
                out.copy_from_slice(&f16::from_f32(v).to_le_bytes());
            }
        }
    }
}
