//! The operations of a decoder: shapes, types and rounding.
//!
//! A step is one forward pass over a ragged batch. The engine fills a [`Plan`], plain data; the decoder walk
//! (`model::decoder`) calls the operations of a [`Device`] in order; what came of it is an [`Outcome`], plain data.
//!
//! # Types and rounding
//!
//! `D` is the activation type ([`DType`], the engine's `--dtype`). Weights keep the type they are stored in. Every
//! product and sum is accumulated in float32; the result of each operation below is rounded to `D` once, where
//! the list says so, and the key/value cache holds `D`. With `D` = f32 nothing is rounded. Logits, scores and everything
//! after them are float32.
//!
//! | operation | computes | rounded to `D` |
//! |---|---|---|
//! | [`Device::embed`] | `x[r] = E[token r]`, or the row's soft token | `x` |
//! | [`Device::attention_input`] | `h = rms(x) * w`; `q, k, v = h W^T + b`; q/k norm per head; rope; `k`, `v` into the cache | `h`; `q`, `k` after rope, `v` |
//! | [`Device::attention`] | `softmax(q k^T / sqrt(head_dim)) v` over the row's keys | the result |
//! | [`Device::attention_output`] | `x += a Wo^T (+ b)` | `x` |
//! | [`Device::mlp_input`] | `h = rms(x) * w`; `silu(h Wg^T) * (h Wu^T)` | `h`; the product |
//! | [`Device::mlp_output`] | `x += m Wd^T` | `x` |
//! | [`Device::head`] | `rms(x) * w`, then logits over the columns that the plan's rows need | `h`; logits stay float32 |
//! | [`Device::sample`] | penalties, bias, masks, log-softmax, top-k/p, min-p, draw | – |
//! | [`Device::step_sids`] | the best `W` of all alive continuations of a search | – |
//!
//! `rms(x) = x / sqrt(mean(x^2) + eps)`, in float32. Rope rotates the pairs `(i, i + head_dim / 2)` by `position * inv_freq[i]`
//! and scales both by [`Rope::scale`].
//!
//! # Order of sums
//!
//! A row's result must not depend on which other rows are in the batch, nor on how a prompt was cut into chunks: every
//! reduction runs over a fixed order given by the shapes of the model and the row's position alone.

use std::ops::Range;
use std::sync::Arc;

use crate::catalog::{Catalog, Layout, Mask};
use crate::error::Result;
use crate::ids::{BlockId, SearchId, SidIndex, TokenId, TypeId};

/// An element type of weights, activations or cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

/// A read-only tensor, row-major, over shared bytes (a mapped file, or memory). Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Tensor {
    /// A view of `range` of `bytes`.
    ///
    /// # Panics
    /// If the range does not hold exactly `shape` elements of `dtype`, lies outside of `bytes`, or is not aligned
    /// to the element; whoever reads files checks this first.
    pub fn new(
        dtype: DType,
        shape: Vec<usize>,
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Tensor {
        assert_eq!(range.len(), shape.iter().product::<usize>() * dtype.size(), "tensor bytes");
        let data = &(*bytes).as_ref()[range.clone()];
        assert_eq!(data.as_ptr() as usize % dtype.size(), 0, "tensor alignment");
        Tensor { dtype, shape, bytes, range }
    }

    /// A tensor that owns float32 values.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Tensor {
        Tensor::from_words(DType::F32, shape, values.to_vec())
    }

    /// A tensor of `dtype` that owns `values`, rounded to nearest even.
    pub fn rounded(dtype: DType, shape: Vec<usize>, values: &[f32]) -> Tensor {
        match dtype {
            DType::F32 => Tensor::from_f32(shape, values),
            DType::Bf16 => Tensor::from_words(
                dtype,
                shape,
                values.iter().map(|&v| half::bf16::from_f32(v)).collect::<Vec<_>>(),
            ),
            DType::F16 => Tensor::from_words(
                dtype,
                shape,
                values.iter().map(|&v| half::f16::from_f32(v)).collect::<Vec<_>>(),
            ),
        }
    }

    /// A tensor that owns its elements as words of the element's size.
    pub(crate) fn from_words<T: bytemuck::Pod + Send + Sync>(
        dtype: DType,
        shape: Vec<usize>,
        values: Vec<T>,
    ) -> Tensor {
        struct Words<T>(Vec<T>);
        impl<T: bytemuck::Pod> AsRef<[u8]> for Words<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        let len = size_of_val(&values[..]);
        Tensor::new(dtype, shape, Arc::new(Words(values)), 0..len)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements' bytes, little endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }

    /// The elements as float32 (a copy).
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice(self.bytes()).to_vec(),
            DType::Bf16 => {
                bytemuck::cast_slice::<u8, half::bf16>(self.bytes()).iter().map(|v| v.to_f32()).collect()
            }
            DType::F16 => {
                bytemuck::cast_slice::<u8, half::f16>(self.bytes()).iter().map(|v| v.to_f32()).collect()
            }
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}", self.shape, self.dtype)
    }
}

/// Rotary embedding: the angle of pair `i` at position `p` is `p * inv_freq[i]`; sine and cosine are scaled by `scale`.
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[head_dim / 2]`, after whatever scaling the checkpoint asks for.
    pub inv_freq: Vec<f32>,
    /// Attention factor (1 unless yarn).
    pub scale: f32,
}

/// The sizes of a decoder, and the data by which architectures differ.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the gated activation.
    pub ffn: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Added to the mean square in every norm.
    pub eps: f32,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Per layer: a key is seen by rows at most `window - 1` positions after it. `None`: no bound.
    pub window: Vec<Option<u32>>,
    /// Rotary embedding.
    pub rope: Rope,
}

/// The weights of one layer; matrices are `[out, in]`.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `[hidden]`.
    pub input_norm: Tensor,
    /// `[heads * head_dim, hidden]`.
    pub q: Tensor,
    /// `[kv_heads * head_dim, hidden]`.
    pub k: Tensor,
    /// `[kv_heads * head_dim, hidden]`.
    pub v: Tensor,
    /// Biases of `q`, `k`, `v`.
    pub qkv_bias: Option<[Tensor; 3]>,
    /// Norms over each head of `q` and `k`, `[head_dim]` each.
    pub qk_norm: Option<[Tensor; 2]>,
    /// `[hidden, heads * head_dim]`.
    pub o: Tensor,
    /// Bias of `o`, `[hidden]`.
    pub o_bias: Option<Tensor>,
    /// `[hidden]`.
    pub post_norm: Tensor,
    /// `[ffn, hidden]`.
    pub gate: Tensor,
    /// `[ffn, hidden]`.
    pub up: Tensor,
    /// `[hidden, ffn]`.
    pub down: Tensor,
}

/// All weights of a decoder.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embed: Tensor,
    /// One entry per layer.
    pub layers: Vec<LayerWeights>,
    /// Final norm, `[hidden]`.
    pub norm: Tensor,
    /// `[vocab, hidden]`; shares the embedding's bytes when tied.
    pub head: Tensor,
}

/// What a device is made from.
pub struct DeviceConfig {
    /// Sizes of the model.
    pub shape: Shape,
    /// Weights of the model.
    pub weights: Weights,
    /// Activation and cache type `D`.
    pub dtype: DType,
    /// Blocks of the key/value cache, [`crate::kv::BLOCK_TOKENS`] tokens each.
    pub cache_blocks: usize,
    /// Most rows of one plan.
    pub max_rows: usize,
    /// `[vocab]` bits, 64 to a word: tokens that text may contain (the opener is not among them).
    pub text_tokens: Vec<u64>,
    /// Where SIDs lie in the vocabulary, if the model has them.
    pub layout: Option<Arc<Layout>>,
}

/// A [`DeviceConfig::text_tokens`] that allows every token of a vocabulary.
pub fn every_token(vocab: usize) -> Vec<u64> {
    let mut words = vec![!0; vocab.div_ceil(64)];
    if let Some(last) = words.last_mut().filter(|_| !vocab.is_multiple_of(64)) {
        *last = (1 << (vocab % 64)) - 1;
    }
    words
}

/// One forward pass over a ragged batch.
///
/// Vectors marked `[rows]` have one entry per row. A plan is reused from step to step; [`Plan::clear`] keeps its memory.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// `[rows]` input token; ignored for soft rows and for rows of beam segments, whose token the device knows.
    pub tokens: Vec<TokenId>,
    /// `[rows]` position of the row in its sequence.
    pub positions: Vec<u32>,
    /// `[rows]` cache slot that receives the row's key and value.
    pub slots: Vec<u32>,
    /// Rows whose input is a vector instead of a token.
    pub soft: Vec<SoftRow>,
    /// Contiguous groups of rows, in row order, that share a context; together they cover all rows.
    pub segments: Vec<Segment>,
    /// Block tables of all segments, one after the other.
    pub blocks: Vec<BlockId>,
    /// Rows to sample a text token from.
    pub text: Vec<TextRow>,
    /// Searches to advance by one level.
    pub sids: Vec<SidStep>,
    /// Rows whose logits over the whole vocabulary are wanted in [`Buffer::Logits`] (evaluation and tests).
    pub full_logits: Vec<u32>,
}

impl Plan {
    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.soft.clear();
        self.segments.clear();
        self.blocks.clear();
        self.text.clear();
        self.sids.clear();
        self.full_logits.clear();
    }
}

/// A row whose input is a soft token.
#[derive(Clone, Debug)]
pub struct SoftRow {
    /// The row.
    pub row: u32,
    /// `[hidden]`: the input in place of an embedding.
    pub values: Arc<[f32]>,
}

/// Contiguous rows that share a context of cached keys.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Rows of the plan.
    pub rows: Range<u32>,
    /// Block table: a range of [`Plan::blocks`]; key `i` of the context lies in block `i / BLOCK_TOKENS` of it.
    pub table: Range<u32>,
    /// Keys in the cache before the first row of the segment.
    pub context: u32,
    /// How the rows follow each other.
    pub kind: SegmentKind,
}

/// How the rows of a segment follow each other.
#[derive(Clone, Debug, PartialEq)]
pub enum SegmentKind {
    /// A piece of one sequence: row `i` sees the context and rows `0..=i`; its position is `context + i`, its slot follows the table.
    Causal,
    /// The beams of a search: every row stands at position `context + level` and sees the context, the private keys of its own
    /// ancestors, and itself. The private key of row `w` at level `l` lies at place `l * stride + w` of the private table.
    /// The row's input is the code that the search chose for it at `level`; who its parent is, the device knows. Rows beyond
    /// the search's live beams are computed by nobody and read by nobody.
    Beam {
        /// The search.
        search: SearchId,
        /// Level of the codes that are this step's inputs, from 0.
        level: u8,
        /// Private block table: a range of [`Plan::blocks`].
        private: Range<u32>,
        /// Places per level of the private table.
        stride: u32,
    },
}

/// Sampling parameters of a text answer. Defaults are vLLM's.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0: greedy.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// 1: off; over prompt and answer.
    pub repetition_penalty: f32,
    /// 0: off; over the answer.
    pub presence_penalty: f32,
    /// 0: off; over the answer.
    pub frequency_penalty: f32,
    /// Added to logits, sorted by token.
    pub bias: Vec<(TokenId, f32)>,
    /// Key of all draws of the request.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
            seed: 0,
        }
    }
}

/// How often a token occurred, for penalties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCount {
    /// The token.
    pub token: TokenId,
    /// Occurrences in the answer so far (0: only in the prompt).
    pub answer: u32,
}

/// A row to sample a text token from.
#[derive(Clone, Debug)]
pub struct TextRow {
    /// The row.
    pub row: u32,
    /// Parameters of the request.
    pub sampling: Arc<Sampling>,
    /// Number of the draw: the place of the token in the answer, so that neighbours change nothing.
    pub draw: u64,
    /// Tokens of prompt and answer; empty unless a penalty is on.
    pub counts: Vec<TokenCount>,
    /// Whether the span opener may be chosen.
    pub allow_open: bool,
    /// Tokens that may not be chosen here besides those never allowed (end tokens before `min_tokens`).
    pub banned: Vec<TokenId>,
    /// How many of the likeliest tokens to report.
    pub top_logprobs: u32,
    /// Score this token instead of drawing one (`choice` answers).
    pub target: Option<TokenId>,
}

/// A search to advance by one level.
#[derive(Clone, Debug)]
pub struct SidStep {
    /// The search.
    pub search: SearchId,
    /// The level whose codes are chosen now, from 0.
    pub level: u8,
    /// Level 0: the row of the opener. Later: the first row of the search's beam segment.
    pub row: u32,
}

/// What the log-probability of a code is normalised over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalizer {
    /// The codes of this level of the path's own type; at the first level the first-level codes of all requested types.
    #[default]
    Codebook,
    /// The whole vocabulary.
    Vocabulary,
    /// The alive children only.
    Valid,
}

/// A beam search over SIDs: everything the device needs to know until the search ends.
#[derive(Clone)]
pub struct SearchSpec {
    /// The catalog snapshot.
    pub catalog: Arc<Catalog>,
    /// Requested types in type order, each with what is alive.
    pub types: Vec<(TypeId, Arc<Mask>)>,
    /// Items added since the snapshot was made.
    pub delta: Option<Delta>,
    /// Beam width per level of the deepest requested type, each from 1 to 1024.
    pub widths: Vec<u32>,
    /// Normaliser of scores.
    pub normalizer: Normalizer,
    /// Diversity groups, which divide every width; 1: off.
    pub groups: u32,
    /// What a group pays for each use of the same code at the same level by earlier groups.
    pub group_penalty: f32,
    /// Most paths kept per (type, first code).
    pub max_per_prefix: Option<u32>,
    /// Draw paths without replacement instead of taking the best.
    pub sampling: Option<SearchSampling>,
}

/// Items beside a snapshot: a second, small trie per type. A node of the search is a pair, of the snapshot's and of the delta's node
/// that the same codes lead to (one of them may be missing), and a code that both have is one candidate.
#[derive(Clone)]
pub struct Delta {
    /// The added items, with the snapshot's types and codebooks; types may be empty.
    pub catalog: Arc<Catalog>,
    /// What of them is alive, one mask per entry of [`SearchSpec::types`].
    pub masks: Vec<Arc<Mask>>,
}

/// Stochastic beam search: paths drawn without replacement from softmax(logits / temperature) over alive children.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchSampling {
    /// Above 0.
    pub temperature: f32,
    /// Key of the noise.
    pub seed: u64,
    /// Number of the first draw, so that two spans of one answer differ.
    pub draw: u64,
}

/// A finished path of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// Type of the item.
    pub item_type: TypeId,
    /// The codes, one per level of the type.
    pub codes: Vec<u16>,
    /// The SID among the distinct SIDs of the type; one that only the delta has is numbered behind the snapshot's.
    pub sid: SidIndex,
    /// Cumulative log-probability in the search's normaliser: the float32 sum of `levels`.
    pub score: f32,
    /// Log-probability of each code.
    pub levels: Vec<f32>,
}

/// What came of a step.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// One entry per [`Plan::text`].
    pub text: Vec<TextOutcome>,
    /// One entry per [`Plan::sids`].
    pub sids: Vec<SidOutcome>,
}

/// A sampled token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextOutcome {
    /// The token drawn, or the target.
    pub token: TokenId,
    /// Its log-probability: log-softmax of the model's own logits over the whole vocabulary, before penalties, bias,
    /// masks and temperature.
    pub logprob: f32,
    /// The likeliest tokens by the same measure, best first.
    pub top: Vec<(TokenId, f32)>,
    /// The row held a NaN or nothing finite that is allowed; token and log-probability mean nothing.
    pub fault: bool,
}

/// A search advanced by one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SidOutcome {
    /// Live beams: rows of the search's next beam segment. 0: the search has ended.
    pub live: u32,
    /// A row held a NaN; the search is of no use any more.
    pub fault: bool,
}

/// A buffer of the device, for tests and evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The residual stream `x [rows, hidden]`.
    Hidden,
    /// `q [rows, heads * head_dim]`, normed and rotated.
    Query,
    /// The attention's result `[rows, heads * head_dim]`.
    Attention,
    /// The gated activation `[rows, ffn]`.
    Gated,
    /// Logits `[full_logits, vocab]`.
    Logits,
}

/// Where the operations of a decoder are carried out.
///
/// One thread owns a device. The operations of a step run in the order of the table above, each with the plan that
/// [`Device::begin`] was given; nothing is allocated in between. An `Err` of any of them is final: the device is not used again.
pub trait Device: Send {
    /// Name and resources, for logs and `doctor`.
    fn describe(&self) -> String;

    /// Opens a search; it lives until [`Device::close_search`].
    fn open_search(&mut self, spec: SearchSpec) -> Result<SearchId>;

    /// Ends a search and forgets it.
    fn close_search(&mut self, search: SearchId);

    /// The finished paths of a search, in its own order: best first, or as drawn.
    fn search_paths(&mut self, search: SearchId) -> Result<Vec<Path>>;

    /// Takes the plan of the next step.
    fn begin(&mut self, plan: &Plan) -> Result<()>;

    /// Runs everything from `embed` to the last layer in one go, if the device has something better than the single
    /// operations; answers whether it did.
    fn forward(&mut self, _plan: &Plan) -> Result<bool> {
        Ok(false)
    }

    /// `x = E[token]`, or the soft token.
    fn embed(&mut self, plan: &Plan) -> Result<()>;

    /// Norm, q/k/v products, q/k norm, rope, cache write.
    fn attention_input(&mut self, plan: &Plan, layer: usize) -> Result<()>;

    /// Attention over the paged cache.
    fn attention(&mut self, plan: &Plan, layer: usize) -> Result<()>;

    /// Output product and residual.
    fn attention_output(&mut self, plan: &Plan, layer: usize) -> Result<()>;

    /// Norm, gate and up products, activation.
    fn mlp_input(&mut self, plan: &Plan, layer: usize) -> Result<()>;

    /// Down product and residual.
    fn mlp_output(&mut self, plan: &Plan, layer: usize) -> Result<()>;

    /// Final norm and logits over the columns that the plan's rows need.
    fn head(&mut self, plan: &Plan) -> Result<()>;

    /// Samples the plan's text rows.
    fn sample(&mut self, plan: &Plan) -> Result<()>;

    /// Advances the plan's searches.
    fn step_sids(&mut self, plan: &Plan) -> Result<()>;

    /// Waits for the step and returns what came of it.
    fn finish(&mut self) -> Result<Outcome>;

    /// Reads a buffer as it stands after the last operation (tests and evaluation).
    fn read(&mut self, buffer: Buffer) -> Result<Vec<f32>>;

    /// Overwrites a buffer (tests).
    fn write(&mut self, buffer: Buffer, values: &[f32]) -> Result<()>;
}
