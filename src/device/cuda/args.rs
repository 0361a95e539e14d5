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
        /// Rows.
        rows: u32,
        /// Segments.
        segments: u32,
        /// Attention tiles of 16 packed queries.
        narrow_items: u32,
        /// Attention tiles of 64 packed queries.
        wide_items: u32,
        /// Text rows.
        text_rows: u32,
        /// Sid steps.
        sid_steps: u32,
        /// Rows offered to the codebook products.
        candidates: u32,
        /// Entries of the block tables.
        blocks: u32,
    }
    /// One row of the batch.
    RowInfo [16] {
        /// SOURCE_*.
        source: u32,
        /// Token id; index of the soft token; beam of the row's segment.
        value: u32,
        /// Position.
        position: u32,
        /// Cache slot that receives key and value: block * BLOCK_TOKENS + place.
        slot: u32,
    }
    /// A run of rows that a product works on: rows [first, first + rows) of its input, whose results begin at element `out` of its output.
    RowGroup [16] {
        /// First.
        first: u32,
        /// Rows.
        rows: u32,
        /// Out.
        out: u64,
    }
    /// Contiguous rows that share a context of cached keys (ops.rs, Segment).
    ///
    /// Attention packs the queries of a key/value head: packed query p of the segment is row first_row + p / group, query head
    /// kv_head * group + p % group, with group = heads / kv_heads. With splits > 0 the context is cut at multiples of split_keys and the tiles
    /// write partial results: those of split s, packed query p lie in unit partial + s * split_units + p / 16, line p % 16, and attention_combine joins them.
    SegmentInfo [64] {
        /// BeamView of a beam segment.
        beams: DevicePtr,
        /// First row.
        first_row: u32,
        /// Rows.
        rows: u32,
        /// First entry of the block table.
        table: u32,
        /// Entries of the block table.
        table_blocks: u32,
        /// Keys in the cache before the first row.
        context: u32,
        /// SEGMENT_*.
        kind: u32,
        /// Beam: level of the codes that are this step's inputs.
        level: u32,
        /// Beam: first entry of the private block table.
        private_table: u32,
        /// Private blocks.
        private_blocks: u32,
        /// Beam: places per level of the private table.
        stride: u32,
        /// 0: the tiles write the result themselves; a beam segment has at least 1.
        splits: u32,
        /// Split keys.
        split_keys: u32,
        /// Partial.
        partial: u32,
        /// Split units.
        split_units: u32,
    }
    /// A tile of packed queries against a range of keys of the context.
    AttentionItem [32] {
        /// Segment.
        segment: u32,
        /// First packed query of the tile.
        packed: u32,
        /// Key begin.
        key_begin: u32,
        /// Key end.
        key_end: u32,
        /// Which partial result; ignored if the segment has no splits.
        split: u32,
        /// Zero.
        reserved: [u32; 3],
    }
    /// Arguments of `embed`.
    EmbedArgs [80] {
        /// `[vocab, hidden]`.
        table: DevicePtr,
        /// Rows.
        rows: DevicePtr,
        /// `[rows]`.
        row_segment: DevicePtr,
        /// Segments.
        segments: DevicePtr,
        /// `[soft tokens, hidden]`.
        soft: DevicePtr,
        /// Counts.
        counts: DevicePtr,
        /// `[rows, hidden]`.
        x: DevicePtr,
        /// Hidden.
        hidden: u32,
        /// Vocab.
        vocab: u32,
        /// Capacity of soft.
        soft_tokens: u32,
        /// Max rows.
        max_rows: u32,
        /// Max segments.
        max_segments: u32,
        /// Zero.
        reserved: u32,
    }
    /// Arguments of `norm`.
    NormArgs [64] {
        /// `[max_rows, hidden]`.
        x: DevicePtr,
        /// `[hidden]`.
        weight: DevicePtr,
        /// `[.., hidden]`.
        out: DevicePtr,
        /// Rows of x, one per row of out; null: row i of x is row i of out.
        list: DevicePtr,
        /// Rows of out.
        group: DevicePtr,
        /// Hidden.
        hidden: u32,
        /// Eps.
        eps: f32,
        /// Of x.
        max_rows: u32,
        /// Of out.
        max_out: u32,
        /// Zero.
        reserved: [u32; 2],
    }
    /// Arguments of `rope`.
    RopeArgs [96] {
        /// `[rows, (heads + 2 kv_heads) * head_dim]`.
        qkv: DevicePtr,
        /// `[head_dim]` or null.
        q_norm: DevicePtr,
        /// K norm.
        k_norm: DevicePtr,
        /// `[head_dim / 2]`.
        inv_freq: DevicePtr,
        /// Rows.
        rows: DevicePtr,
        /// Counts.
        counts: DevicePtr,
        /// `[rows, heads * head_dim]`.
        q: DevicePtr,
        /// `[blocks, kv_heads, BLOCK_TOKENS, head_dim]`.
        k: DevicePtr,
        /// V.
        v: DevicePtr,
        /// Heads.
        heads: u32,
        /// Kv heads.
        kv_heads: u32,
        /// Cache blocks.
        cache_blocks: u32,
        /// Max rows.
        max_rows: u32,
        /// Eps.
        eps: f32,
        /// Of sine and cosine.
        scale: f32,
    }
    /// Arguments of `attention`.
    AttentionArgs [144] {
        /// `[rows, heads * head_dim]`.
        q: DevicePtr,
        /// `[cache_blocks, kv_heads, BLOCK_TOKENS, head_dim]`.
        k: DevicePtr,
        /// V.
        v: DevicePtr,
        /// `[rows, heads * head_dim]`.
        out: DevicePtr,
        /// `[units, kv_heads, 16, head_dim]`: sums of exp(s - max) v.
        partial: DevicePtr,
        /// `[units, kv_heads, 16]`: (max of s * log2 e, sum).
        partial_sums: DevicePtr,
        /// Segments.
        segments: DevicePtr,
        /// Items.
        items: DevicePtr,
        /// Item count.
        item_count: DevicePtr,
        /// Row segment.
        row_segment: DevicePtr,
        /// Block tables.
        blocks: DevicePtr,
        /// Counts.
        counts: DevicePtr,
        /// Heads.
        heads: u32,
        /// Kv heads.
        kv_heads: u32,
        /// Cache blocks.
        cache_blocks: u32,
        /// Max rows.
        max_rows: u32,
        /// Max segments.
        max_segments: u32,
        /// Max items.
        max_items: u32,
        /// Capacity of blocks.
        max_table: u32,
        /// Max units.
        max_units: u32,
        /// 0: none.
        window: u32,
        /// Log2(e) / sqrt(head_dim).
        scale: f32,
        /// Zero.
        reserved: [u32; 2],
    }
    /// Arguments of `probe`: `y[i] = x[i] * scale + offset`, each operation rounded.
    ProbeArgs [32] {
        /// float `[count]`
        x: DevicePtr,
        /// float `[count]`
        y: DevicePtr,
        /// Elements.
        count: u64,
        /// Factor.
        scale: f32,
        /// Summand.
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
        /// Variant.
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
