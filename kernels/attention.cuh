// What the attention kernels share: what a row sees, and how two partial softmaxes become one.
//
// A partial softmax over some keys is (max, sum, values[head_dim]): max of t = score * log2(e) / sqrt(head_dim), sum of 2^(t - max), and the sum
// of 2^(t - max) v. Order of a row's sums, whatever shares the tile with the row, and the same in every kernel but attention_hopper, whose groups have
// 128 keys and are joined to all before at once:
//
//   group   64 keys from a multiple of 64: scores and products by mma, keys in order
//   chunk   `split_keys` keys (a multiple of 256) from a multiple of it: its groups, joined in order
//   row     the chunks, joined in order; then, for a beam, its private keys one by one
//
// A group or chunk in which the row sees nothing is left out, so that neither its neighbours nor where a tile begins touch its bits.
// Products and sums of joins are written out as fma and mul: a compiler that contracts them differently in two kernels would change bits.
#pragma once
#include "args.cuh"
#include "device.cuh"

constexpr uint32_t GROUP_KEYS = 64;
constexpr uint32_t ROUND_KEYS = 256;   // chunks are multiples of this

struct Softmax {
    float max = -INFINITY;
    float sum = 0.0f;
};

// What both sides of a join are multiplied with.
struct Factors {
    float total, part;
};

DEVICE_INLINE Factors join(Softmax& total, Softmax part) {
    const float greatest = fmaxf(total.max, part.max);
    const float base = greatest == -INFINITY ? 0.0f : greatest;   // -inf - -inf is NaN
    const Factors f = {dev::exp2_approx(total.max - base), dev::exp2_approx(part.max - base)};
    total.sum = dev::fma_rn(part.sum, f.part, dev::mul_rn(total.sum, f.total));
    total.max = greatest;
    return f;
}

DEVICE_INLINE float joined(float total, float part, Factors f) { return dev::fma_rn(part, f.part, dev::mul_rn(total, f.total)); }

// Keys [begin, end) of the context.
struct KeyRange {
    uint32_t begin, end;

    DEVICE_INLINE bool meets(uint32_t from, uint32_t to) const { return begin < to && from < end; }
};

// Keys that the block table of a segment can hold; entries beyond the capacity of the tables do not count.
DEVICE_INLINE uint32_t table_keys(uint32_t table, uint32_t blocks, uint32_t max_table) {
    return table < max_table ? min(blocks, max_table - table) * BLOCK_TOKENS : 0;
}

// The keys of the context that row `local` of a segment sees.
DEVICE_INLINE KeyRange visible_keys(const SegmentInfo& s, uint32_t local, uint32_t window, uint32_t keys) {
    const bool beam = s.kind == SEGMENT_BEAM;
    const uint32_t position = s.context + (beam ? s.level : local);
    const uint32_t end = min(beam ? s.context : position + 1, keys);
    const uint32_t begin = window != 0 && position >= window ? position + 1 - window : 0;
    return {min(begin, end), end};
}

// Rows of a segment that are computed: those within the batch and, of a search, the live beams.
DEVICE_INLINE uint32_t live_rows(const SegmentInfo& s, uint32_t max_rows) {
    const uint32_t rows = s.first_row < max_rows ? min(s.rows, max_rows - s.first_row) : 0;
    if (s.kind != SEGMENT_BEAM) return rows;
    return s.beams == 0 ? 0 : min(rows, reinterpret_cast<const BeamView*>(s.beams)->live);
}

// Keys after which a new chunk begins; `split_keys` rounded down to whole rounds, at least one.
DEVICE_INLINE uint32_t chunk_keys(const SegmentInfo& s) { return max(s.split_keys / ROUND_KEYS, 1u) * ROUND_KEYS; }
