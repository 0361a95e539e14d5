//! Argument structs of the kernels and the records of the plan buffer: the Rust side of `kernels/args.cuh`, field by field.

use super::driver::{DevicePtr, TensorMap};
use crate::catalog;
use crate::device::cpu::sid;

/// Tokens of a cache block.
pub const BLOCK_TOKENS: usize = crate::kv::BLOCK_TOKENS;
/// Most beams of a search.
pub const MAX_WIDTH: usize = 1024;
/// Most levels of a SID.
pub const MAX_LEVELS: usize = 16;
/// An absent index.
pub const NONE: u32 = u32::MAX;

const _: () = assert!(BLOCK_TOKENS == 16, "kernels/args.cuh says 16");
const _: () = assert!(MAX_LEVELS >= catalog::MAX_LEVELS, "a catalog may be deeper than the kernels go");
const _: () = assert!(MAX_WIDTH == sid::MAX_WIDTH as usize, "a search may be wider or narrower than here");

/// Declares structs that `kernels/args.cuh` declares as well: plain data of the same size.
macro_rules! mirrored {
    ($($(#[$doc:meta])* $name:ident [$bytes:literal] { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $bytes, "kernels/args.cuh says otherwise");
    )*};
}
pub(crate) use mirrored;

/// Source of a row's input: a token, by id.
pub const SOURCE_TOKEN: u32 = 0;
/// A soft token, by index.
pub const SOURCE_SOFT: u32 = 1;
/// The code of a beam, by place.
pub const SOURCE_BEAM: u32 = 2;
/// Rows of one sequence.
pub const SEGMENT_CAUSAL: u32 = 0;
/// Beams of one search.
pub const SEGMENT_BEAM: u32 = 1;
/// Bytes of a `BeamView`, which only kernels read: live beams, padding to 16, `[MAX_WIDTH]` tokens, `[MAX_LEVELS, MAX_WIDTH]` ancestors (u16).
pub const BEAM_VIEW_BYTES: usize = 16 + 4 * MAX_WIDTH + 2 * MAX_LEVELS * MAX_WIDTH;

mirrored! {
    /// Lengths of the plan's arrays, first in the plan buffer.
    StepCounts [32] {
        /// Rows of the batch.
        rows: u32,
        /// [`SegmentInfo`]s.
        segments: u32,
        /// Attention tiles of 16 packed queries.
        narrow_items: u32,
        /// Attention tiles of 64 or 128 packed queries.
        wide_items: u32,
        /// Rows that a text token is sampled from.
        text_rows: u32,
        /// Searches that advance by one level.
        sid_steps: u32,
        /// Rows offered to the codebook products.
        candidates: u32,
        /// Entries of the block tables of all segments.
        blocks: u32,
    }
    /// One row of the batch.
    RowInfo [16] {
        /// Where the input comes from: `SOURCE_*`.
        source: u32,
        /// Token id; index of the soft token; beam of the row's segment.
        value: u32,
        /// Position in the sequence, from 0: the angle of rope.
        position: u32,
        /// Cache slot that receives key and value: block * BLOCK_TOKENS + place.
        slot: u32,
    }
    /// A run of rows that a product works on: rows [first, first + rows) of its input, whose results begin at element `out` of its output.
    RowGroup [16] {
        /// First row of the input.
        first: u32,
        /// Rows from there on; 0: nothing to do.
        rows: u32,
        /// Element of the output at which the first row's result begins.
        out: u64,
    }
    /// Contiguous rows that share a context of cached keys (ops.rs, Segment).
    ///
    /// Attention packs the queries of a key/value head: packed query p of the segment is row first_row + p / group, query head
    /// kv_head * group + p % group, with group = heads / kv_heads. With splits > 0 the context is cut at multiples of split_keys and the tiles
    /// write partial results: those of split s, packed query p lie in unit partial + s * split_units + p / 16, line p % 16, and attention_combine joins them.
    SegmentInfo [64] {
        /// `BeamView` of a beam segment, else null.
        beams: DevicePtr,
        /// First row of the batch that belongs to it.
        first_row: u32,
        /// Rows; of a beam segment those that may be live.
        rows: u32,
        /// First entry of the block table.
        table: u32,
        /// Entries of the block table.
        table_blocks: u32,
        /// Keys in the cache before the first row.
        context: u32,
        /// How the rows follow each other: `SEGMENT_*`.
        kind: u32,
        /// Beam: level of the codes that are this step's inputs.
        level: u32,
        /// Beam: first entry of the private block table.
        private_table: u32,
        /// Beam: entries of the private block table.
        private_blocks: u32,
        /// Beam: places per level of the private table.
        stride: u32,
        /// 0: the tiles write the result themselves; a beam segment has at least 1.
        splits: u32,
        /// Keys of a chunk of the sums; splits begin at multiples of it.
        split_keys: u32,
        /// First unit of the partial results.
        partial: u32,
        /// Units of one split: its packed queries by 16, rounded up.
        split_units: u32,
    }
    /// A tile of packed queries against a range of keys of the context.
    AttentionItem [32] {
        /// Index of the [`SegmentInfo`].
        segment: u32,
        /// First packed query of the tile.
        packed: u32,
        /// First key of the tile.
        key_begin: u32,
        /// One past its last key.
        key_end: u32,
        /// Which partial result; ignored if the segment has no splits.
        split: u32,
        /// Zero.
        reserved: [u32; 3],
    }
    /// Arguments of `embed`.
    EmbedArgs [80] {
        /// `[vocab, hidden]` in the activation type.
        table: DevicePtr,
        /// `[rows]` [`RowInfo`].
        rows: DevicePtr,
        /// `[rows]` segment of each row.
        row_segment: DevicePtr,
        /// [`SegmentInfo`]s: beams of a segment find their tokens there.
        segments: DevicePtr,
        /// `[soft tokens, hidden]` float32.
        soft: DevicePtr,
        /// The [`StepCounts`].
        counts: DevicePtr,
        /// `[rows, hidden]`: the residual stream.
        x: DevicePtr,
        /// Elements of a row.
        hidden: u32,
        /// Rows of the table; tokens beyond it are zeros.
        vocab: u32,
        /// Capacity of `soft`.
        soft_tokens: u32,
        /// Capacity of `x` and `rows`.
        max_rows: u32,
        /// Capacity of `segments`.
        max_segments: u32,
        /// Zero.
        reserved: u32,
    }
    /// Arguments of `norm`.
    NormArgs [64] {
        /// `[max_rows, hidden]` in the activation type.
        x: DevicePtr,
        /// `[hidden]` float32.
        weight: DevicePtr,
        /// `[max_out, hidden]` in the activation type.
        out: DevicePtr,
        /// Rows of `x`, one per row of `out`; null: row i of `x` is row i of `out`.
        list: DevicePtr,
        /// A [`RowGroup`]: rows of `out`.
        group: DevicePtr,
        /// Elements of a row, a multiple of 8.
        hidden: u32,
        /// Added to the mean square.
        eps: f32,
        /// Rows of `x`.
        max_rows: u32,
        /// Rows of `out`.
        max_out: u32,
        /// Zero.
        reserved: [u32; 2],
    }
    /// Arguments of `rope`.
    RopeArgs [96] {
        /// `[rows, (heads + 2 kv_heads) * head_dim]` float32.
        qkv: DevicePtr,
        /// `[head_dim]` float32, the weight of a norm over each head of q; or null.
        q_norm: DevicePtr,
        /// The same for k.
        k_norm: DevicePtr,
        /// `[head_dim / 2]` float32: radians per position.
        inv_freq: DevicePtr,
        /// `[rows]` [`RowInfo`].
        rows: DevicePtr,
        /// The [`StepCounts`].
        counts: DevicePtr,
        /// `[rows, heads * head_dim]` in the activation type.
        q: DevicePtr,
        /// `[blocks, kv_heads, BLOCK_TOKENS, head_dim]`: a layer's cached keys.
        k: DevicePtr,
        /// Its cached values, of the same shape.
        v: DevicePtr,
        /// Query heads.
        heads: u32,
        /// Key/value heads.
        kv_heads: u32,
        /// Blocks of `k` and `v`; slots beyond are not written.
        cache_blocks: u32,
        /// Capacity of `qkv`, `q` and `rows`.
        max_rows: u32,
        /// Added to the mean square in the norms of heads.
        eps: f32,
        /// Factor of sine and cosine.
        scale: f32,
    }
    /// Arguments of `attention`.
    AttentionArgs [144] {
        /// `[rows, heads * head_dim]` in the activation type.
        q: DevicePtr,
        /// `[cache_blocks, kv_heads, BLOCK_TOKENS, head_dim]`: a layer's cached keys.
        k: DevicePtr,
        /// Its cached values, of the same shape.
        v: DevicePtr,
        /// `[rows, heads * head_dim]` in the activation type.
        out: DevicePtr,
        /// `[units, kv_heads, 16, head_dim]`: sums of exp(s - max) v.
        partial: DevicePtr,
        /// `[units, kv_heads, 16]`: (max of s * log2 e, sum).
        partial_sums: DevicePtr,
        /// [`SegmentInfo`]s.
        segments: DevicePtr,
        /// [`AttentionItem`]s of the kernel's tile size.
        items: DevicePtr,
        /// How many `items` there are: a field of the [`StepCounts`].
        item_count: DevicePtr,
        /// `[rows]` segment of each row, for the join.
        row_segment: DevicePtr,
        /// Block tables of all segments.
        blocks: DevicePtr,
        /// The [`StepCounts`].
        counts: DevicePtr,
        /// Query heads.
        heads: u32,
        /// Key/value heads.
        kv_heads: u32,
        /// Blocks of `k` and `v`; entries of tables beyond are not followed.
        cache_blocks: u32,
        /// Capacity of `q` and `out`.
        max_rows: u32,
        /// Capacity of `segments`.
        max_segments: u32,
        /// Capacity of `items`.
        max_items: u32,
        /// Capacity of `blocks`.
        max_table: u32,
        /// Capacity of `partial`, in units of 16 packed queries.
        max_units: u32,
        /// Keys that a row sees, itself among them; 0: all.
        window: u32,
        /// Factor of scores: log2(e) / sqrt(head_dim).
        scale: f32,
        /// Zero.
        reserved: [u32; 2],
    }
    /// Arguments of `probe`: `y[i] = x[i] * scale + offset`, each operation rounded.
    ProbeArgs [32] {
        /// Float32 `[count]`.
        x: DevicePtr,
        /// Float32 `[count]`.
        y: DevicePtr,
        /// Elements.
        count: u64,
        /// Factor of `x`.
        scale: f32,
        /// Added to the product.
        offset: f32,
    }
    /// Arguments of `check_*`: each kernel of `kernels/checks.cu` says what it reads and writes.
    CheckArgs [48] {
        /// First input.
        input: DevicePtr,
        /// Second input.
        input2: DevicePtr,
        /// First output.
        output: DevicePtr,
        /// Second output.
        output2: DevicePtr,
        /// Elements.
        n: u64,
        /// Which variant of the check.
        mode: u32,
        /// Zero.
        unused: u32,
    }
}

/// Arguments of `check_wgmma_*`: `output [64, N] = a [64, k] b [N, k]^T`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct CheckProductArgs {
    /// `[64, k]`, boxes of 64 rows.
    pub a: TensorMap,
    /// `[N, k]`, boxes of N rows.
    pub b: TensorMap,
    /// float `[64, N]`
    pub output: DevicePtr,
    /// Length of the sums.
    pub k: u64,
    /// Zero.
    pub unused: [u64; 6],
}
const _: () = assert!(size_of::<CheckProductArgs>() == 320, "kernels/args.cuh says otherwise");
