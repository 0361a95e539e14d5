// Joins the partial results of attention, row by row: out [rows, heads, head_dim] in bf16 or f16.
//
// For a row whose segment was split: the splits that hold keys it sees, in order. For a beam, then, its private keys: those of its ancestors
// at levels 0 to level - 1 and its own, one by one: the key of level l lies at place l * stride + (place in the beam of l) of the private
// table. One softmax over all; order of sums: attention.cuh. Rows beyond a search's live beams become zeros, other rows are left alone.
//
// head_dim / 8 lanes are one head of one row, eight dimensions each. Bytes: 4 head_dim + 8 per split, 4 head_dim per private key, all by loads
// of 16 bytes, four splits or keys in flight; the latency of the ancestors' chain (place, block, key) is met once per four levels.
// Most rows of a prefill have nothing to join: each warp looks at 32 rows at a time and passes over them at one load's latency.
#include "attention.cuh"

namespace {

constexpr uint32_t THREADS = 128;
constexpr uint32_t BATCH = 4;   // splits or keys in flight

// Eight dimensions of a head of a row.
template <class T, int HD>
struct Head {
    static constexpr uint32_t LANES = HD / 8;

    const AttentionArgs& a;
    const SegmentInfo& s;
    uint32_t local;      // row of the segment
    uint32_t head;
    uint32_t kv_head;
    uint32_t lane;       // of the head's
    Softmax total;
    float values[8] = {};

    DEVICE_INLINE void add(Softmax part, const float (&v)[8]) {
        const Factors f = join(total, part);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) values[i] = joined(values[i], v[i], f);
    }

    DEVICE_INLINE void add_splits() {
        const uint32_t chunk = chunk_keys(s), group = a.heads / a.kv_heads, p = local * group + head % group;
        const KeyRange seen = visible_keys(s, local, a.window, table_keys(s.table, s.table_blocks, a.max_table));
        if (s.splits == 0 || seen.begin >= seen.end) return;
        // The last split holds all keys that are left.
        const uint32_t from = min(seen.begin / chunk, s.splits - 1), to = min((seen.end - 1) / chunk, s.splits - 1);
        for (uint32_t first = from; first <= to; first += BATCH) {
            float4 v[BATCH][2];
            float2 stat[BATCH];
#pragma unroll
            for (uint32_t i = 0; i < BATCH; i++) {
                const uint32_t unit = s.partial + (first + i) * s.split_units + p / 16;
                stat[i] = make_float2(-INFINITY, 0.0f);
                v[i][0] = v[i][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (first + i > to || unit >= a.max_units) continue;
                const size_t place = (size_t(unit) * a.kv_heads + kv_head) * 16 + p % 16;
                const float4* const at = reinterpret_cast<const float4*>(a.partial + place * HD + lane * 8);
                stat[i] = a.partial_sums[place];
                v[i][0] = at[0];
                v[i][1] = at[1];
            }
#pragma unroll
            for (uint32_t i = 0; i < BATCH; i++) {
                if (first + i > to) continue;
                add({stat[i].x, stat[i].y}, {v[i][0].x, v[i][0].y, v[i][0].z, v[i][0].w, v[i][1].x, v[i][1].y, v[i][1].z, v[i][1].w});
            }
        }
    }

    // Element of k and v where the private key of a level begins; -1 if the tables lie.
    DEVICE_INLINE int64_t private_key(const BeamView& beams, uint32_t level) const {
        const uint32_t beam = level == s.level ? local : beams.ancestor[level][min(local, MAX_WIDTH - 1)];
        const uint32_t place = level * s.stride + beam;
        if (place >= table_keys(s.private_table, s.private_blocks, a.max_table)) return -1;
        const uint32_t block = a.blocks[s.private_table + place / BLOCK_TOKENS];
        if (block >= a.cache_blocks) return -1;
        return ((int64_t(block) * a.kv_heads + kv_head) * BLOCK_TOKENS + place % BLOCK_TOKENS) * HD;
    }

    // Every lane of the head's comes here alike.
    DEVICE_INLINE void add_private(const BeamView& beams, uint32_t mask) {
        const uint32_t level = min(s.level, MAX_LEVELS - 1);
        const uint32_t lowest = a.window != 0 && s.level >= a.window ? s.level + 1 - a.window : 0;
        float q[8];
        dev::Vec8<T>::load(static_cast<const T*>(a.q) + place()).to_floats(q);
        for (uint32_t first = lowest; first <= level; first += BATCH) {
            int64_t at[BATCH];
            dev::Vec8<T> k[BATCH], v[BATCH];
#pragma unroll
            for (uint32_t i = 0; i < BATCH; i++) {
                at[i] = first + i <= level ? private_key(beams, first + i) : -1;
                k[i] = v[i] = dev::Vec8<T>::zero();
            }
#pragma unroll
            for (uint32_t i = 0; i < BATCH; i++) {
                if (at[i] < 0) continue;
                k[i] = dev::Vec8<T>::load(static_cast<const T*>(a.k) + at[i] + lane * 8);
                v[i] = dev::Vec8<T>::load(static_cast<const T*>(a.v) + at[i] + lane * 8);
            }
#pragma unroll
            for (uint32_t i = 0; i < BATCH; i++) {
                float x[8], score = 0.0f;
                k[i].to_floats(x);
#pragma unroll
                for (uint32_t d = 0; d < 8; d++) score = dev::fma_rn(q[d], x[d], score);
#pragma unroll
                for (uint32_t bit = 1; bit < LANES; bit *= 2) score += __shfl_xor_sync(mask, score, bit);
                v[i].to_floats(x);
                if (at[i] >= 0) add({dev::mul_rn(score, a.scale), 1.0f}, x);
            }
        }
    }

    // Element of q and out.
    DEVICE_INLINE size_t place() const { return (size_t(s.first_row + local) * a.heads + head) * HD + lane * 8; }

    DEVICE_INLINE void store(float factor) const {
        float out[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) out[i] = dev::mul_rn(values[i], factor);
        dev::Vec8<T>::rounded(out).store(static_cast<T*>(a.out) + place());
    }
};

// The segment of a row that has something to join, or null.
DEVICE_INLINE const SegmentInfo* segment_of(const AttentionArgs& a, uint32_t row) {
    const uint32_t index = a.row_segment[row];
    if (index >= min(a.counts->segments, a.max_segments)) return nullptr;
    const SegmentInfo& s = a.segments[index];
    if (row < s.first_row || row - s.first_row >= s.rows) return nullptr;
    return s.splits != 0 || s.kind == SEGMENT_BEAM ? &s : nullptr;
}

template <class T, int HD>
DEVICE_INLINE void combine(const AttentionArgs& a) {
    constexpr uint32_t LANES = Head<T, HD>::LANES;
    dev::dependency_wait();
    dev::dependency_trigger();
    const uint32_t lane = threadIdx.x % 32, rows = min(a.counts->rows, a.max_rows);
    const uint32_t head = (blockIdx.y * THREADS + threadIdx.x) / LANES;
    const bool present = head < a.heads;
    for (uint32_t strip = blockIdx.x; strip < rows; strip += 32 * gridDim.x) {
        const uint32_t candidate = strip + lane * gridDim.x;
        uint32_t wanted = __ballot_sync(dev::FULL_MASK, candidate < rows && segment_of(a, candidate) != nullptr);
        const uint32_t mask = __ballot_sync(dev::FULL_MASK, present);
        for (; present && wanted != 0; wanted &= wanted - 1) {
            const uint32_t row = strip + (__ffs(wanted) - 1) * gridDim.x;
            const SegmentInfo& s = *segment_of(a, row);
            Head<T, HD> h{a, s, row - s.first_row, head, head / (a.heads / a.kv_heads), threadIdx.x % LANES, {}};
            if (row - s.first_row >= live_rows(s, a.max_rows)) {
                h.store(0.0f);
                continue;
            }
            h.add_splits();
            if (s.kind == SEGMENT_BEAM) h.add_private(*reinterpret_cast<const BeamView*>(s.beams), mask);
            h.store(dev::div_rn(1.0f, h.total.sum));
        }
    }
}

}  // namespace

KERNEL(attention_combine_16_bf16, AttentionArgs, 128, 4) { combine<bf16, 16>(a); }
KERNEL(attention_combine_32_bf16, AttentionArgs, 128, 4) { combine<bf16, 32>(a); }
KERNEL(attention_combine_64_bf16, AttentionArgs, 128, 4) { combine<bf16, 64>(a); }
KERNEL(attention_combine_128_bf16, AttentionArgs, 128, 4) { combine<bf16, 128>(a); }
KERNEL(attention_combine_16_f16, AttentionArgs, 128, 4) { combine<f16, 16>(a); }
KERNEL(attention_combine_32_f16, AttentionArgs, 128, 4) { combine<f16, 32>(a); }
KERNEL(attention_combine_64_f16, AttentionArgs, 128, 4) { combine<f16, 64>(a); }
KERNEL(attention_combine_128_f16, AttentionArgs, 128, 4) { combine<f16, 128>(a); }
