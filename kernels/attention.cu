// Attention over the paged cache, for every row of a batch: out = softmax(q k^T / sqrt(head_dim)) v over the context that the row sees.
//
//   q, out [rows, heads, head_dim]   k, v [cache_blocks, kv_heads, 16, head_dim]   all bf16 or f16, sums in float
//
// A tile is 16 or 64 packed queries (args.cuh, SegmentInfo) of one segment and key/value head against a range of the segment's keys. A
// cache block of a head is 32 head_dim contiguous bytes, which cp.async gathers in pieces of 16 keys; scores and values are mma.m16n8k16,
// the softmax is in float and base 2. Order of sums: attention.cuh. Both kernels compute a group of 64 keys with the same instructions in
// the same order and join groups in order, so a row has the same bits in either.
//
// narrow (16 queries: decoding). Bound by bytes: the four warps of a block take the four groups of a round of 256 keys, and each gathers its
//   own through a ring of four pieces, so no barrier stands between a copy and its use. The warps' groups are joined through shared memory once
//   per round. At head_dim 128: ring 64 KB + exchange 34 KB, two blocks on a multiprocessor, 96 to 128 KB under way there; the 32 bytes a
//   nanosecond that are its share of 4.3 TB/s need about 32 KB at a microsecond. 128 mma per warp and round, a fifth of the time of its bytes.
// wide (64 queries: prefill, beams). Bound by mma: the warps take 16 queries each and share the keys, two stages of a group (64 KB) and
//   one barrier per group; only a chunk's end goes through shared memory (34 KB). Groups that no query of a warp sees cost it the copies alone.
#include "attention_tile.cuh"

namespace {

constexpr uint32_t WARPS = 4;
constexpr uint32_t THREADS = 32 * WARPS;
constexpr uint32_t PIECES = GROUP_KEYS / PIECE_KEYS;   // of a group

template <int HD>
struct Shape {
    static constexpr uint32_t CHUNKS = HD / 8;                     // 16-byte pieces of a row
    static constexpr uint32_t STEPS = HD / 16;                     // depth of the products of scores
    static constexpr uint32_t COLUMNS = HD / 8;                    // mma tiles of the result
    static constexpr uint32_t PIECE = PIECE_KEYS * HD;             // elements
    static constexpr uint32_t STRIDE = HD + 8;                     // floats of a line in shared memory: eight banks further per line
};

// Offset of 16 bytes of a key in a piece. Eight keys' chunks of one index, which ldmatrix reads at once, lie in eight different banks.
// swizzled(key, c ^ d) is swizzled(key, c) ^ 8 d: one offset of a lane serves all steps.
template <int HD>
DEVICE_INLINE uint32_t swizzled(uint32_t key, uint32_t chunk) {
    constexpr uint32_t CHUNKS = Shape<HD>::CHUNKS, PER_LINE = CHUNKS < 8 ? 8 / CHUNKS : 1, MASK = (CHUNKS < 8 ? CHUNKS : 8) - 1;
    return (key * CHUNKS + (chunk ^ (key / PER_LINE & MASK))) * 8;
}

// A warp fetches the 16 keys or values from `key` on. What no line of the tile sees is zero: the weights of those keys are, and 0 * NaN is not.
template <class T, int HD>
DEVICE_INLINE void copy_piece(T* to, const void* cache, const AttentionArgs& a, const Tile& t, uint32_t key, uint32_t block, uint32_t lane) {
    constexpr uint32_t CHUNKS = Shape<HD>::CHUNKS;
    const bool present = block != NONE;
    const T* const from = static_cast<const T*>(cache) + (size_t(present ? block : 0) * a.kv_heads + t.kv_head) * Shape<HD>::PIECE;
#pragma unroll
    for (uint32_t i = 0; i < PIECE_KEYS * CHUNKS / 32; i++) {
        const uint32_t index = i * 32 + lane, row = index / CHUNKS;
        dev::cp_async16(to + swizzled<HD>(row, index % CHUNKS), from + index * 8, present && key + row >= t.begin && key + row < t.end);
    }
}

// The queries of lines `first` to `first + 16` as operands of mma; zeros for lines that are not there.
template <class T, int HD>
DEVICE_INLINE void load_queries(uint32_t (&q)[Shape<HD>::STEPS][4], const AttentionArgs& a, const Tile& t, uint32_t first, uint32_t lane) {
    const T* rows[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        const uint32_t line = first + lane / 4 + 8 * h;
        rows[h] = line < t.lines ? static_cast<const T*>(a.q) + line_place<HD>(a, t, line) + lane % 4 * 2 : nullptr;
    }
#pragma unroll
    for (uint32_t step = 0; step < Shape<HD>::STEPS; step++) {
#pragma unroll
        for (uint32_t r = 0; r < 4; r++) {
            const T* const row = rows[r % 2];
            q[step][r] = row == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(row + step * 16 + r / 2 * 8);
        }
    }
}

// Scores of 16 lines and the 16 keys of a piece.
template <class T, int HD>
DEVICE_INLINE void score_piece(float (&s0)[4], float (&s1)[4], const uint32_t (&q)[Shape<HD>::STEPS][4], const T* piece, uint32_t lane) {
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) s0[i] = s1[i] = 0.0f;
    const uint32_t place = swizzled<HD>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (uint32_t step = 0; step < Shape<HD>::STEPS; step++) {
        uint32_t k[4];
        dev::ldmatrix_x4(k, piece + (place ^ 16 * step));
        dev::mma_16816<T>(s0, q[step], {k[0], k[1]});
        dev::mma_16816<T>(s1, q[step], {k[2], k[3]});
    }
}

// values[c] and values[c + 1] += weights of 16 keys times 16 dimensions of a piece.
template <class T, int HD>
DEVICE_INLINE void add_values(float (&v0)[4], float (&v1)[4], const uint32_t (&weights)[4], const T* piece, uint32_t column, uint32_t lane) {
    uint32_t v[4];
    dev::ldmatrix_x4_trans(v, piece + (swizzled<HD>(lane % 16, lane / 16) ^ 8 * column));
    dev::mma_16816<T>(v0, weights, {v[0], v[1]});
    dev::mma_16816<T>(v1, weights, {v[2], v[3]});
}

// Softmax of a group over the keys that each of the lane's two lines sees; the weights become the operand of the products with the values.
template <class T>
DEVICE_INLINE void soften(Softmax (&part)[2], uint32_t (&weights)[PIECES][4], float (&s)[2 * PIECES][4], const KeyRange (&seen)[2], uint32_t from,
                          float scale, uint32_t lane) {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        if (seen[h].begin > from || seen[h].end < from + GROUP_KEYS) {
#pragma unroll
            for (uint32_t i = 0; i < 4 * PIECES; i++) {
                const uint32_t key = from + i / 2 * 8 + lane % 4 * 2 + i % 2;
                if (key < seen[h].begin || key >= seen[h].end) s[i / 2][2 * h + i % 2] = -INFINITY;
            }
        }
        float greatest = -INFINITY;
#pragma unroll
        for (uint32_t i = 0; i < 2 * PIECES; i++) greatest = fmaxf(greatest, fmaxf(s[i][2 * h], s[i][2 * h + 1]));
        greatest = fmaxf(greatest, __shfl_xor_sync(dev::FULL_MASK, greatest, 1));
        greatest = fmaxf(greatest, __shfl_xor_sync(dev::FULL_MASK, greatest, 2));
        part[h].max = dev::mul_rn(greatest, scale);
        const float base = part[h].max == -INFINITY ? 0.0f : part[h].max;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 2 * PIECES; i++) {
            const float w0 = dev::exp2_approx(dev::fma_rn(s[i][2 * h], scale, -base));
            const float w1 = dev::exp2_approx(dev::fma_rn(s[i][2 * h + 1], scale, -base));
            sum += w0 + w1;
            weights[i / 2][i % 2 * 2 + h] = dev::pack2<T>(w0, w1);
        }
        sum += __shfl_xor_sync(dev::FULL_MASK, sum, 1);
        part[h].sum = sum + __shfl_xor_sync(dev::FULL_MASK, sum, 2);
    }
}

// Writes eight dimensions of a line: the result, or the partial result of the tile's split.
template <class T, int HD>
DEVICE_INLINE void put(const AttentionArgs& a, const Tile& t, uint32_t line, uint32_t chunk, const float (&values)[8], Softmax total) {
    if (t.segment->splits == 0) {
        const float factor = dev::div_rn(1.0f, total.sum);
        float out[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) out[i] = dev::mul_rn(values[i], factor);
        dev::Vec8<T>::rounded(out).store(static_cast<T*>(a.out) + line_place<HD>(a, t, line) + chunk * 8);
        return;
    }
    const size_t place = partial_place(a, t, line);
    if (place == NOWHERE) return;
    float4* const to = reinterpret_cast<float4*>(a.partial + place * HD + chunk * 8);
    to[0] = make_float4(values[0], values[1], values[2], values[3]);
    to[1] = make_float4(values[4], values[5], values[6], values[7]);
    if (chunk == 0) a.partial_sums[place] = make_float2(total.max, total.sum);
}

// ------------------------------------------------------------------------------------------------------------------ narrow

// Eight dimensions of a line, joined from the warps' groups by one thread: of the present chunk and of all before.
struct Portion {
    Softmax chunk, total;
    float of_chunk[8] = {}, of_total[8] = {};
    bool any = false;   // the line sees something in the chunk

    DEVICE_INLINE void add(const float* values, Softmax part) {
        const Factors f = join(chunk, part);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) of_chunk[i] = joined(of_chunk[i], values[i], f);
        any = true;
    }

    DEVICE_INLINE void end_chunk() {
        if (!any) return;
        const Factors f = join(total, chunk);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) of_total[i] = joined(of_total[i], of_chunk[i], f), of_chunk[i] = 0.0f;
        chunk = Softmax();
        any = false;
    }
};

template <class T, int HD>
DEVICE_INLINE void narrow_tile(const AttentionArgs& a, const Tile& t, T* ring, float* sums, float2* stats) {
    using S = Shape<HD>;
    constexpr uint32_t PORTIONS = (LINES * S::CHUNKS + THREADS - 1) / THREADS;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t first = t.begin / ROUND_KEYS, last = (t.end - 1) / ROUND_KEYS;
    const uint32_t chunk_rounds = chunk_keys(*t.segment) / ROUND_KEYS;

    // The warp's group of a round, its lane's share of the group's block ids, and whether anyone sees it.
    const auto group_of = [&](uint32_t round) { return round * ROUND_KEYS + warp * GROUP_KEYS; };
    const auto blocks_of = [&](uint32_t round) { return block_of(a, t, group_of(round) / PIECE_KEYS + lane % PIECES); };
    const auto is_seen = [&](uint32_t round) { return round <= last && KeyRange{t.begin, t.end}.meets(group_of(round), group_of(round) + GROUP_KEYS); };
    const auto fetch = [&](const void* cache, uint32_t round, uint32_t piece, uint32_t ids, bool seen) {
        const uint32_t block = __shfl_sync(dev::FULL_MASK, ids, piece);
        __syncwarp();   // what the copy overwrites, every lane has read: a shuffle orders no memory
        if (seen) copy_piece<T, HD>(ring + piece * S::PIECE, cache, a, t, group_of(round) + piece * PIECE_KEYS, block, lane);
        dev::cp_async_commit();
    };

    uint32_t ids = blocks_of(first);
    bool seen = is_seen(first);
#pragma unroll
    for (uint32_t j = 0; j < PIECES; j++) fetch(a.k, first, j, ids, seen);

    uint32_t q[S::STEPS][4];
    load_queries<T, HD>(q, a, t, 0, lane);
    const KeyRange lines[2] = {line_keys(a, t, lane / 4), line_keys(a, t, lane / 4 + 8)};
    Portion portions[PORTIONS];
    KeyRange ranges[PORTIONS];
#pragma unroll
    for (uint32_t i = 0; i < PORTIONS; i++) ranges[i] = line_keys(a, t, (threadIdx.x + i * THREADS) / S::CHUNKS);

    for (uint32_t round = first; round <= last; round++) {
        // Ids are read a round ahead: a copy does not wait for them.
        const uint32_t next_ids = blocks_of(round + 1);
        const bool next_seen = is_seen(round + 1);
        float scores[2 * PIECES][4], values[S::COLUMNS][4] = {};
        uint32_t weights[PIECES][4];
        Softmax part[2];
#pragma unroll
        for (uint32_t j = 0; j < PIECES; j++) {
            dev::cp_async_wait<PIECES - 1>();
            __syncwarp();   // each lane waited for its own copies
            if (seen) score_piece<T, HD>(scores[2 * j], scores[2 * j + 1], q, ring + j * S::PIECE, lane);
            fetch(a.v, round, j, ids, seen);
        }
        if (seen) soften<T>(part, weights, scores, lines, group_of(round), a.scale, lane);
#pragma unroll
        for (uint32_t j = 0; j < PIECES; j++) {
            dev::cp_async_wait<PIECES - 1>();
            __syncwarp();
            if (seen) {
#pragma unroll
                for (uint32_t c = 0; c < S::COLUMNS; c += 2) add_values<T, HD>(values[c], values[c + 1], weights[j], ring + j * S::PIECE, c, lane);
            }
            fetch(a.k, round + 1, j, next_ids, next_seen);
        }

        __syncthreads();   // the groups of the round before are joined
        if (seen) {
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                const uint32_t line = lane / 4 + 8 * h;
                if (line >= t.lines) continue;
                float* const to = sums + (warp * LINES + line) * S::STRIDE + lane % 4 * 2;
#pragma unroll
                for (uint32_t c = 0; c < S::COLUMNS; c++) *reinterpret_cast<float2*>(to + c * 8) = make_float2(values[c][2 * h], values[c][2 * h + 1]);
                if (lane % 4 == 0) stats[warp * LINES + line] = make_float2(part[h].max, part[h].sum);
            }
        }
        __syncthreads();   // the groups of this round are there
        ids = next_ids;
        seen = next_seen;
#pragma unroll
        for (uint32_t i = 0; i < PORTIONS; i++) {
            const uint32_t line = (threadIdx.x + i * THREADS) / S::CHUNKS, chunk = (threadIdx.x + i * THREADS) % S::CHUNKS;
            for (uint32_t w = 0; w < WARPS; w++) {
                const uint32_t from = round * ROUND_KEYS + w * GROUP_KEYS;
                if (!ranges[i].meets(from, from + GROUP_KEYS)) continue;
                const float2 stat = stats[w * LINES + line];
                portions[i].add(sums + (w * LINES + line) * S::STRIDE + chunk * 8, {stat.x, stat.y});
            }
            if ((round + 1) % chunk_rounds == 0 || round == last) portions[i].end_chunk();
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < PORTIONS; i++) {
        const uint32_t line = (threadIdx.x + i * THREADS) / S::CHUNKS, chunk = (threadIdx.x + i * THREADS) % S::CHUNKS;
        if (line < t.lines) put<T, HD>(a, t, line, chunk, portions[i].of_total, portions[i].total);
    }
}

template <class T, int HD>
DEVICE_INLINE void narrow(const AttentionArgs& a) {
    using S = Shape<HD>;
    DYNAMIC_SHARED(raw);
    dev::Carver carver(raw);
    T* const ring = carver.take<T>(WARPS * PIECES * S::PIECE);
    float* const sums = carver.take<float>(WARPS * LINES * S::STRIDE);
    float2* const stats = carver.take<float2>(WARPS * LINES);
    dev::dependency_wait();
    dev::dependency_trigger();
    for (uint32_t unit = blockIdx.x; unit < unit_count(a); unit += gridDim.x) {
        Tile t;
        if (tile_of<LINES>(a, unit, t)) narrow_tile<T, HD>(a, t, ring + threadIdx.x / 32 * PIECES * S::PIECE, sums, stats);
    }
}

// -------------------------------------------------------------------------------------------------------------------- wide

// A warp's lines after some groups: the present chunk in registers, as mma leaves it; the chunks before in shared memory (`sums`, `stats`).
template <int HD>
struct Lines {
    KeyRange seen[2];
    Softmax chunk[2];
    float values[Shape<HD>::COLUMNS][4] = {};

    // Two dimensions of one of the lane's lines in shared memory.
    static DEVICE_INLINE float2* total_of(float* sums, uint32_t h, uint32_t column, uint32_t lane) {
        return reinterpret_cast<float2*>(sums + (lane / 4 + 8 * h) * Shape<HD>::STRIDE + lane % 4 * 2 + column * 8);
    }

    // The first barrier of the tile makes this visible.
    static DEVICE_INLINE void begin(float* sums, float2* stats, uint32_t lane) {
#pragma unroll
        for (uint32_t i = 0; i < 2 * Shape<HD>::COLUMNS; i++) *total_of(sums, i % 2, i / 2, lane) = make_float2(0.0f, 0.0f);
        if (lane < LINES) stats[lane] = make_float2(-INFINITY, 0.0f);
    }

    DEVICE_INLINE void end_chunk(float* sums, float2* stats, uint32_t lane) {
        const float2 old[2] = {stats[lane / 4], stats[lane / 4 + 8]};
        __syncwarp();   // four lanes read a line's, one of them writes it
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            if (chunk[h].sum == 0.0f) continue;   // the line sees nothing in the chunk
            Softmax total = {old[h].x, old[h].y};
            const Factors f = join(total, chunk[h]);
            if (lane % 4 == 0) stats[lane / 4 + 8 * h] = make_float2(total.max, total.sum);
#pragma unroll
            for (uint32_t c = 0; c < Shape<HD>::COLUMNS; c++) {
                float2* const place = total_of(sums, h, c, lane);
                const float2 old = *place;
                *place = make_float2(joined(old.x, values[c][2 * h], f), joined(old.y, values[c][2 * h + 1], f));
                values[c][2 * h] = values[c][2 * h + 1] = 0.0f;
            }
            chunk[h] = Softmax();
        }
    }
};

// A warp's lines meet a group.
template <class T, int HD>
DEVICE_INLINE void meet(Lines<HD>& lines, const uint32_t (&q)[Shape<HD>::STEPS][4], const T* keys, const T* values, uint32_t from, float scale, uint32_t lane) {
    using S = Shape<HD>;
    constexpr uint32_t BATCH = S::COLUMNS < 4 ? S::COLUMNS : 4;   // tiles of the result at once: registers for a group's part only
    float scores[2 * PIECES][4];
    uint32_t weights[PIECES][4];
    Softmax part[2];
#pragma unroll
    for (uint32_t j = 0; j < PIECES; j++) score_piece<T, HD>(scores[2 * j], scores[2 * j + 1], q, keys + j * S::PIECE, lane);
    soften<T>(part, weights, scores, lines.seen, from, scale, lane);
    Factors f[2];
    bool sees[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        sees[h] = lines.seen[h].meets(from, from + GROUP_KEYS);
        if (!sees[h]) continue;
        f[h] = join(lines.chunk[h], part[h]);
    }
#pragma unroll
    for (uint32_t c = 0; c < S::COLUMNS; c += BATCH) {
        float sum[BATCH][4] = {};
#pragma unroll
        for (uint32_t j = 0; j < PIECES; j++) {
#pragma unroll
            for (uint32_t b = 0; b < BATCH; b += 2) add_values<T, HD>(sum[b], sum[b + 1], weights[j], values + j * S::PIECE, c + b, lane);
        }
#pragma unroll
        for (uint32_t i = 0; i < BATCH * 4; i++) {
            float& value = lines.values[c + i / 4][i % 4];
            if (sees[i / 2 % 2]) value = joined(value, sum[i / 4][i % 4], f[i / 2 % 2]);
        }
    }
}

template <class T, int HD>
DEVICE_INLINE void wide_tile(const AttentionArgs& a, const Tile& t, T* stages, uint32_t& stage, float* sums, float2* stats) {
    using S = Shape<HD>;
    constexpr uint32_t GROUP = GROUP_KEYS * HD;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t first = t.begin / GROUP_KEYS, last = (t.end - 1) / GROUP_KEYS;
    uint32_t chunk_end = (t.begin / chunk_keys(*t.segment) + 1) * (chunk_keys(*t.segment) / GROUP_KEYS);   // group after the chunk

    // Each warp fetches one of the four pieces of a group.
    const auto block = [&](uint32_t group) { return block_of(a, t, group * PIECES + warp); };
    const auto fetch = [&](uint32_t group, uint32_t id, T* to) {
        const uint32_t key = group * GROUP_KEYS + warp * PIECE_KEYS;
        copy_piece<T, HD>(to + warp * S::PIECE, a.k, a, t, key, id, lane);
        copy_piece<T, HD>(to + GROUP + warp * S::PIECE, a.v, a, t, key, id, lane);
    };

    // The stage that is not `stage` is free: who passed the last barrier of the tile before had finished with it.
    stage ^= 1;
    fetch(first, block(first), stages + stage * 2 * GROUP);
    uint32_t next = block(first + 1);
    dev::cp_async_commit();

    uint32_t q[S::STEPS][4];
    load_queries<T, HD>(q, a, t, warp * LINES, lane);
    Lines<HD> lines;
    lines.begin(sums, stats, lane);
    lines.seen[0] = line_keys(a, t, warp * LINES + lane / 4);
    lines.seen[1] = line_keys(a, t, warp * LINES + lane / 4 + 8);

    for (uint32_t group = first; group <= last; group++) {
        dev::cp_async_wait<0>();
        __syncthreads();   // this group is there; everyone is done with the one before
        const T* const keys = stages + stage * 2 * GROUP;
        stage ^= 1;
        if (group < last) {
            fetch(group + 1, next, stages + stage * 2 * GROUP);
            dev::cp_async_commit();
            next = block(group + 2);
        }
        const uint32_t from = group * GROUP_KEYS;
        const bool seen = lines.seen[0].meets(from, from + GROUP_KEYS) || lines.seen[1].meets(from, from + GROUP_KEYS);
        if (__any_sync(dev::FULL_MASK, seen)) meet<T, HD>(lines, q, keys, keys + GROUP, from, a.scale, lane);
        if (group + 1 == chunk_end || group == last) {
            lines.end_chunk(sums, stats, lane);
            chunk_end += chunk_keys(*t.segment) / GROUP_KEYS;
        }
    }
    // `stage` is now the one after the last; the last is the other.
    stage ^= 1;

    __syncwarp();   // the warp's lines are in shared memory
    const uint32_t mine = t.lines > warp * LINES ? min(t.lines - warp * LINES, LINES) : 0;
    for (uint32_t i = lane; i < mine * S::CHUNKS; i += 32) {
        const uint32_t line = i / S::CHUNKS, chunk = i % S::CHUNKS;
        const float4* const from = reinterpret_cast<const float4*>(sums + line * S::STRIDE + chunk * 8);
        const float4 low = from[0], high = from[1];
        const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        put<T, HD>(a, t, warp * LINES + line, chunk, values, {stats[line].x, stats[line].y});
    }
    __syncwarp();   // and have been read
}

template <class T, int HD>
DEVICE_INLINE void wide(const AttentionArgs& a) {
    using S = Shape<HD>;
    DYNAMIC_SHARED(raw);
    dev::Carver carver(raw);
    T* const stages = carver.take<T>(2 * 2 * GROUP_KEYS * HD);
    float* const sums = carver.take<float>(WARPS * LINES * S::STRIDE);
    float2* const stats = carver.take<float2>(WARPS * LINES);
    dev::dependency_wait();
    dev::dependency_trigger();
    const uint32_t warp = threadIdx.x / 32;
    uint32_t stage = 0;
    for (uint32_t unit = blockIdx.x; unit < unit_count(a); unit += gridDim.x) {
        Tile t;
        if (tile_of<WARPS * LINES>(a, unit, t)) wide_tile<T, HD>(a, t, stages, stage, sums + warp * LINES * S::STRIDE, stats + warp * LINES);
    }
}

}  // namespace

KERNEL(attention_narrow_16_bf16, AttentionArgs, 128, 2) { narrow<bf16, 16>(a); }
KERNEL(attention_narrow_32_bf16, AttentionArgs, 128, 2) { narrow<bf16, 32>(a); }
KERNEL(attention_narrow_64_bf16, AttentionArgs, 128, 2) { narrow<bf16, 64>(a); }
KERNEL(attention_narrow_128_bf16, AttentionArgs, 128, 2) { narrow<bf16, 128>(a); }
KERNEL(attention_narrow_16_f16, AttentionArgs, 128, 2) { narrow<f16, 16>(a); }
KERNEL(attention_narrow_32_f16, AttentionArgs, 128, 2) { narrow<f16, 32>(a); }
KERNEL(attention_narrow_64_f16, AttentionArgs, 128, 2) { narrow<f16, 64>(a); }
KERNEL(attention_narrow_128_f16, AttentionArgs, 128, 2) { narrow<f16, 128>(a); }
KERNEL(attention_wide_16_bf16, AttentionArgs, 128, 2) { wide<bf16, 16>(a); }
KERNEL(attention_wide_32_bf16, AttentionArgs, 128, 2) { wide<bf16, 32>(a); }
KERNEL(attention_wide_64_bf16, AttentionArgs, 128, 2) { wide<bf16, 64>(a); }
KERNEL(attention_wide_128_bf16, AttentionArgs, 128, 2) { wide<bf16, 128>(a); }
KERNEL(attention_wide_16_f16, AttentionArgs, 128, 2) { wide<f16, 16>(a); }
KERNEL(attention_wide_32_f16, AttentionArgs, 128, 2) { wide<f16, 32>(a); }
KERNEL(attention_wide_64_f16, AttentionArgs, 128, 2) { wide<f16, 64>(a); }
KERNEL(attention_wide_128_f16, AttentionArgs, 128, 2) { wide<f16, 128>(a); }
