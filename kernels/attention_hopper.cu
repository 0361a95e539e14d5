// attention_wide for sm_90a, head_dim 64 and 128: the same result from products of warpgroups and bulk copies. Its order of sums is its own, so that
// reproducible mode does without it.
//
// A tile is 128 packed queries against its keys, in groups of 128. One warp copies: a piece of 16 keys of a head is a box of 16 rows in each half of
// 64 dimensions, wherever the block table says it lies, and keys and values have barriers of their own, so that scores need not wait for values. Two
// warpgroups compute, 64 lines each: scores = q k^T from shared memory, softmax in registers, out += weights v with the weights as they stand in registers.
// Powers of two take about as long as one of the two products; they hide behind the values' product of the group before, and the other warpgroup's.
//
// Bound by operations: 4 head_dim per line and key, against 4 head_dim bytes per key from level 2, whose 128 operations per byte are 6.2 TB/s at
// the full matrix rate and 4.4 at 0.72 of it. At head_dim 128 shared memory holds queries (32 KB) and two stages of keys and values (128 KB), a thread
// 64 scores, 64 sums and 32 words of weights: one block of 384 threads on a multiprocessor.
#include "attention_tile.cuh"
#include "hopper.cuh"

namespace {

constexpr uint32_t CONSUMERS = 2, GROUP_THREADS = 128;
constexpr uint32_t MINE = 64;                        // lines of a consumer
constexpr uint32_t LINES_OF_TILE = CONSUMERS * MINE;
constexpr uint32_t KEYS = 128;                       // of a group
constexpr uint32_t PIECES = KEYS / PIECE_KEYS;
constexpr uint32_t STAGES = 2;
constexpr uint32_t LINE_BYTES = 128;                 // of a swizzled tile: 64 dimensions
constexpr uint32_t BARRIER_MINE = 1, BARRIER_ALL = BARRIER_MINE + CONSUMERS;   // named barriers

template <int HD>
struct Shared {
    static constexpr uint32_t HALVES = HD / 64;
    static constexpr uint32_t QUERY_HALF = MINE * LINE_BYTES, GROUP_HALF = KEYS * LINE_BYTES;
    static constexpr uint32_t QUERIES = HALVES * QUERY_HALF, GROUP = HALVES * GROUP_HALF;   // bytes
    unsigned char* queries;          // [CONSUMERS, HALVES, MINE] lines
    unsigned char* keys;             // [STAGES, HALVES, KEYS] lines
    unsigned char* values;
    uint64_t *keys_full, *keys_empty, *values_full, *values_empty;   // [STAGES]
};

// Where a role stands in the ring.
struct Turn {
    uint32_t stage = 0, phase = 0;
    DEVICE_INLINE void advance() {
        stage = (stage + 1) % STAGES;
        if (stage == 0) phase ^= 1;
    }
};

// The unit of a block's turn. The work list begins with the longest tiles, so every other turn goes backwards: long ones meet short ones.
DEVICE_INLINE uint32_t unit_of(uint32_t turn) { return turn * gridDim.x + (turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x); }

// Groups of a tile.
struct Groups {
    uint32_t first, last;
    DEVICE_INLINE explicit Groups(const Tile& t) : first(t.begin / KEYS), last((t.end - 1) / KEYS) {}
};

// -------------------------------------------------------------------------------------------------------------------- copies

// Copies a group's keys or values; lane i of the warp knows where piece i lies. One lane issues, since a bulk copy's operands are those of a warp.
template <int HD>
DEVICE_INLINE void copy_group(unsigned char* to, const TensorMap* map, int row, uint64_t* full, uint32_t lane) {
    using S = Shared<HD>;
    if (lane == 0) dev::mbarrier_arrive_expect(full, S::GROUP);
    for (uint32_t piece = 0; piece < PIECES; piece++) {
        const int from = __shfl_sync(dev::FULL_MASK, row, piece);
        if (lane != 0) continue;
#pragma unroll
        for (uint32_t half = 0; half < S::HALVES; half++)
            dev::tma_load_2d(to + half * S::GROUP_HALF + piece * PIECE_KEYS * LINE_BYTES, map, int(half * 64), from, full);
    }
}

template <int HD>
DEVICE_INLINE void produce(const AttentionBulkArgs& bulk, const Shared<HD>& shared, uint32_t lane) {
    using S = Shared<HD>;
    const AttentionArgs& a = bulk.attention;
    const uint32_t beyond = a.cache_blocks * a.kv_heads * PIECE_KEYS;   // a row that no cache has
    const uint32_t units = unit_count(a);
    Turn turn;
    for (uint32_t i = 0; unit_of(i) < units; i++) {
        Tile t;
        if (!tile_of<LINES_OF_TILE>(a, unit_of(i), t)) continue;
        const Groups groups(t);
        for (uint32_t group = groups.first; group <= groups.last; group++, turn.advance()) {
            // What no line of the tile sees, and what the table does not tell, is zero.
            const uint32_t key = group * KEYS + lane % PIECES * PIECE_KEYS;
            const uint32_t block = KeyRange{t.begin, t.end}.meets(key, key + PIECE_KEYS) ? block_of(a, t, key / PIECE_KEYS) : NONE;
            const int row = int(block == NONE ? beyond : (block * a.kv_heads + t.kv_head) * PIECE_KEYS);
            dev::mbarrier_wait(&shared.keys_empty[turn.stage], turn.phase ^ 1);
            copy_group<HD>(shared.keys + turn.stage * S::GROUP, &bulk.k, row, &shared.keys_full[turn.stage], lane);
            dev::mbarrier_wait(&shared.values_empty[turn.stage], turn.phase ^ 1);
            copy_group<HD>(shared.values + turn.stage * S::GROUP, &bulk.v, row, &shared.values_full[turn.stage], lane);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------ products

// The consumer's queries into shared memory, swizzled; zeros for lines that are not there.
template <class T, int HD>
DEVICE_INLINE void load_queries(unsigned char* to, const AttentionArgs& a, const Tile& t, uint32_t first, uint32_t thread) {
    using S = Shared<HD>;
    constexpr uint32_t CHUNKS = HD / 8;   // 16-byte pieces of a line
#pragma unroll 4
    for (uint32_t i = thread; i < MINE * CHUNKS; i += GROUP_THREADS) {
        const uint32_t line = i / CHUNKS, chunk = i % CHUNKS;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (first + line < t.lines) value = dev::load16(static_cast<const T*>(a.q) + line_place<HD>(a, t, first + line) + chunk * 8);
        dev::store16(to + chunk / 8 * S::QUERY_HALF + line * LINE_BYTES + ((chunk % 8) ^ (line % 8)) * 16, value);
    }
}

// Issues scores [64, 128] = queries keys^T.
template <class T, int HD>
DEVICE_INLINE void issue_scores(float (&scores)[KEYS / 2], const unsigned char* queries, const unsigned char* keys) {
    using S = Shared<HD>;
    dev::wgmma_fence();
#pragma unroll
    for (uint32_t half = 0; half < S::HALVES; half++) {
        const uint64_t q = dev::tile_descriptor(queries + half * S::QUERY_HALF), k = dev::tile_descriptor(keys + half * S::GROUP_HALF);
#pragma unroll
        for (uint32_t step = 0; step < 4; step++) dev::wgmma<T, KEYS>(scores, q + 2 * step, k + 2 * step, half + step > 0);
    }
    dev::wgmma_commit();
}

DEVICE_INLINE void settle(uint32_t (&weights)[PIECES][4]) {
#pragma unroll
    for (uint32_t piece = 0; piece < PIECES; piece++) dev::wgmma_settle(weights[piece]);
}

// Issues sums [64, HD] += weights values.
template <class T, int HD>
DEVICE_INLINE void issue_values(float (&sums)[HD / 2], uint32_t (&weights)[PIECES][4], const unsigned char* values) {
    using S = Shared<HD>;
    dev::wgmma_settle(sums);
    settle(weights);
    dev::wgmma_fence();
#pragma unroll
    for (uint32_t piece = 0; piece < PIECES; piece++)
        dev::wgmma_values<T, HD>(sums, weights[piece], dev::tile_descriptor(values + piece * PIECE_KEYS * LINE_BYTES, S::GROUP_HALF));
    dev::wgmma_commit();
}

// The lane's two lines: what they see, and their softmax so far, of which `sum` is the lane's own share of four.
struct State {
    KeyRange seen[2];
    Softmax total[2];

    // Takes in the scores of a group; they become weights, and `factors` what the sums so far are worth now.
    DEVICE_INLINE void soften(float (&s)[KEYS / 2], float (&factors)[2], uint32_t from, float scale, uint32_t lane) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            if (seen[h].begin > from || seen[h].end < from + KEYS) {
#pragma unroll
                for (uint32_t i = 0; i < KEYS / 4; i++) {
                    const uint32_t key = from + i / 2 * 8 + lane % 4 * 2 + i % 2;
                    if (key < seen[h].begin || key >= seen[h].end) s[i / 2 * 4 + 2 * h + i % 2] = -INFINITY;
                }
            }
            float greatest = -INFINITY;
#pragma unroll
            for (uint32_t i = 0; i < KEYS / 8; i++) greatest = fmaxf(greatest, fmaxf(s[i * 4 + 2 * h], s[i * 4 + 2 * h + 1]));
            greatest = fmaxf(greatest, __shfl_xor_sync(dev::FULL_MASK, greatest, 1));
            greatest = fmaxf(greatest, __shfl_xor_sync(dev::FULL_MASK, greatest, 2));
            greatest = fmaxf(total[h].max, dev::mul_rn(greatest, scale));
            const float base = greatest == -INFINITY ? 0.0f : greatest;   // -inf - -inf is NaN
            factors[h] = dev::exp2_approx(total[h].max - base);
            float sum = 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < KEYS / 8; i++) {
                float &w0 = s[i * 4 + 2 * h], &w1 = s[i * 4 + 2 * h + 1];
                w0 = dev::exp2_approx(dev::fma_rn(w0, scale, -base));
                w1 = dev::exp2_approx(dev::fma_rn(w1, scale, -base));
                sum += w0 + w1;
            }
            total[h].max = greatest;
            total[h].sum = dev::fma_rn(total[h].sum, factors[h], sum);
        }
    }

    DEVICE_INLINE void join_lanes() {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            total[h].sum += __shfl_xor_sync(dev::FULL_MASK, total[h].sum, 1);
            total[h].sum += __shfl_xor_sync(dev::FULL_MASK, total[h].sum, 2);
        }
    }
};

// Writes the lane's columns of a line: the result, or the partial result of the tile's split.
template <class T, int HD>
DEVICE_INLINE void put(const AttentionArgs& a, const Tile& t, uint32_t line, uint32_t h, const float (&sums)[HD / 2], Softmax total, uint32_t lane) {
    const uint32_t column = lane % 4 * 2;
    if (t.segment->splits == 0) {
        const float factor = dev::div_rn(1.0f, total.sum);
        uint32_t* const to = reinterpret_cast<uint32_t*>(static_cast<T*>(a.out) + line_place<HD>(a, t, line) + column);
#pragma unroll
        for (uint32_t c = 0; c < HD / 8; c++) to[c * 4] = dev::pack2<T>(dev::mul_rn(sums[c * 4 + 2 * h], factor), dev::mul_rn(sums[c * 4 + 2 * h + 1], factor));
        return;
    }
    const size_t place = partial_place(a, t, line);
    if (place == NOWHERE) return;
    float2* const to = reinterpret_cast<float2*>(a.partial + place * HD + column);
#pragma unroll
    for (uint32_t c = 0; c < HD / 8; c++) to[c * 4] = make_float2(sums[c * 4 + 2 * h], sums[c * 4 + 2 * h + 1]);
    if (column == 0) a.partial_sums[place] = make_float2(total.max, total.sum);
}

// Values of keys that the tile does not see, in the first and the last group: weights of 0 would not silence a NaN that an earlier owner left behind.
template <int HD>
DEVICE_INLINE void silence(unsigned char* values, const Tile& t, uint32_t from, uint32_t thread) {
    using S = Shared<HD>;
    constexpr uint32_t CHUNKS = HD / 8;
    for (uint32_t i = thread; i < KEYS * CHUNKS; i += CONSUMERS * GROUP_THREADS) {
        const uint32_t key = i / CHUNKS, chunk = i % CHUNKS;   // a line is zero as a whole: the swizzle does not matter
        if (from + key >= t.begin && from + key < t.end) continue;
        dev::store16(values + chunk / 8 * S::GROUP_HALF + key * LINE_BYTES + chunk % 8 * 16, make_uint4(0, 0, 0, 0));
    }
    dev::fence_proxy_async();
    dev::barrier_sync(BARRIER_ALL, CONSUMERS * GROUP_THREADS);
}

// Weights as the operand of the products with the values. These registers belong to the products under way until they are waited for.
template <class T>
DEVICE_INLINE void pack(uint32_t (&weights)[PIECES][4], const float (&w)[KEYS / 2]) {
#pragma unroll
    for (uint32_t i = 0; i < PIECES * 4; i++) weights[i / 4][i % 4] = dev::pack2<T>(w[i * 2], w[i * 2 + 1]);
}

// A consumer on its way through a tile's groups.
template <class T, int HD>
struct Consumer {
    using S = Shared<HD>;
    const AttentionArgs& a;
    const Tile& t;
    const Shared<HD>& shared;
    const uint32_t lane;

    DEVICE_INLINE const unsigned char* keys(Turn turn) const {
        dev::mbarrier_wait(&shared.keys_full[turn.stage], turn.phase);
        __syncwarp();   // lanes leave a loop of polling one by one, and what follows is of whole warps
        return shared.keys + turn.stage * S::GROUP;
    }
    DEVICE_INLINE const unsigned char* values(Turn turn, uint32_t group) const {
        dev::mbarrier_wait(&shared.values_full[turn.stage], turn.phase);
        __syncwarp();
        unsigned char* const at = shared.values + turn.stage * S::GROUP;
        const uint32_t from = group * KEYS;
        if (from < t.begin || from + KEYS > t.end) silence<HD>(at, t, from, threadIdx.x);
        return at;
    }
    DEVICE_INLINE void done(uint64_t* empty, Turn turn) const {
        if (lane == 0) dev::mbarrier_arrive(&empty[turn.stage]);
    }

    // Groups that none of the consumer's lines sees.
    DEVICE_INLINE void skip(Turn& turn, uint32_t group, uint32_t end) const {
        for (; group < end; group++, turn.advance()) {
            keys(turn);
            done(shared.keys_empty, turn);
            values(turn, group);
            done(shared.values_empty, turn);
        }
    }

    // Groups `group` to `last`, of which each is seen: while a group's scores become weights, the values of the group before are multiplied.
    DEVICE_INLINE void meet(State& state, float (&sums)[HD / 2], Turn& turn, const unsigned char* queries, uint32_t group, uint32_t last) const {
        float scores[KEYS / 2], factors[2];
        uint32_t weights[PIECES][4];
        issue_scores<T, HD>(scores, queries, keys(turn));
        dev::wgmma_wait<0>();
        dev::wgmma_settle(scores);
        done(shared.keys_empty, turn);
        state.soften(scores, factors, group * KEYS, a.scale, lane);   // the sums are zero still: nothing to scale
        pack<T>(weights, scores);
        for (; group < last; group++) {
            const Turn before = turn;
            turn.advance();
            const unsigned char* const next = keys(turn);
            const unsigned char* const now = values(before, group);
            issue_scores<T, HD>(scores, queries, next);
            issue_values<T, HD>(sums, weights, now);
            dev::wgmma_wait<1>();
            dev::wgmma_settle(scores);
            done(shared.keys_empty, turn);
            state.soften(scores, factors, (group + 1) * KEYS, a.scale, lane);
            dev::wgmma_wait<0>();
            dev::wgmma_settle(sums);
            settle(weights);
            done(shared.values_empty, before);
#pragma unroll
            for (uint32_t i = 0; i < HD / 2; i++) sums[i] = dev::mul_rn(sums[i], factors[i / 2 % 2]);
            pack<T>(weights, scores);
        }
        issue_values<T, HD>(sums, weights, values(turn, last));
        dev::wgmma_wait<0>();
        dev::wgmma_settle(sums);
        done(shared.values_empty, turn);
        turn.advance();
    }
};

template <class T, int HD>
DEVICE_INLINE void consume_tile(const AttentionArgs& a, const Tile& t, const Shared<HD>& shared, Turn& turn, uint32_t consumer) {
    using S = Shared<HD>;
    const uint32_t thread = threadIdx.x % GROUP_THREADS, lane = thread % 32;
    const uint32_t first = consumer * MINE, line = first + thread / 32 * LINES + lane / 4;
    unsigned char* const queries = shared.queries + consumer * S::QUERIES;
    dev::barrier_sync(BARRIER_MINE + consumer, GROUP_THREADS);   // the products of the tile before are done
    load_queries<T, HD>(queries, a, t, first, thread);
    dev::fence_proxy_async();
    dev::barrier_sync(BARRIER_MINE + consumer, GROUP_THREADS);

    State state;
    state.seen[0] = line_keys(a, t, line);
    state.seen[1] = line_keys(a, t, line + 8);
    float sums[HD / 2] = {};
    const Consumer<T, HD> me = {a, t, shared, lane};
    const Groups groups(t);
    // What any of the consumer's lines sees: the first one the lowest key, the last one the highest.
    KeyRange mine = {0, 0};
    if (first < t.lines) mine = {line_keys(a, t, first).begin, line_keys(a, t, min(first + MINE, t.lines) - 1).end};
    if (mine.begin < mine.end) {
        const uint32_t from = mine.begin / KEYS, last = (mine.end - 1) / KEYS;
        me.skip(turn, groups.first, from);
        me.meet(state, sums, turn, queries, from, last);
        me.skip(turn, last + 1, groups.last + 1);
    } else {
        me.skip(turn, groups.first, groups.last + 1);
    }
    state.join_lanes();
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        if (line + 8 * h < t.lines) put<T, HD>(a, t, line + 8 * h, h, sums, state.total[h], lane);
    }
    __syncwarp();
}

template <class T, int HD>
DEVICE_INLINE void wide(const AttentionBulkArgs& bulk) {
    using S = Shared<HD>;
    DYNAMIC_SHARED(raw);
    SHARED(uint64_t, barriers, 4 * STAGES);
    dev::Carver carver(raw);
    S shared;
    shared.queries = carver.take<unsigned char>(CONSUMERS * S::QUERIES, 1024);
    shared.keys = carver.take<unsigned char>(STAGES * S::GROUP, 1024);
    shared.values = carver.take<unsigned char>(STAGES * S::GROUP, 1024);
    shared.keys_full = barriers, shared.keys_empty = barriers + STAGES;
    shared.values_full = barriers + 2 * STAGES, shared.values_empty = barriers + 3 * STAGES;
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < STAGES; stage++) {
            dev::mbarrier_init(&shared.keys_full[stage], 1);
            dev::mbarrier_init(&shared.values_full[stage], 1);
            dev::mbarrier_init(&shared.keys_empty[stage], CONSUMERS * GROUP_THREADS / 32);
            dev::mbarrier_init(&shared.values_empty[stage], CONSUMERS * GROUP_THREADS / 32);
        }
        dev::mbarrier_fence_init();
    }
    __syncthreads();
    dev::dependency_wait();
    dev::dependency_trigger();
    const AttentionArgs& a = bulk.attention;
    if (threadIdx.x >= CONSUMERS * GROUP_THREADS) {
        dev::registers_shrink<40>();
        if (threadIdx.x / 32 == CONSUMERS * GROUP_THREADS / 32) produce<HD>(bulk, shared, threadIdx.x % 32);
        return;
    }
    dev::registers_grow<232>();
    const uint32_t units = unit_count(a);
    Turn turn;
    for (uint32_t i = 0; unit_of(i) < units; i++) {
        Tile t;
        if (tile_of<LINES_OF_TILE>(a, unit_of(i), t)) consume_tile<T, HD>(a, t, shared, turn, threadIdx.x / GROUP_THREADS);
    }
}

}  // namespace

KERNEL(attention_hopper_64_bf16, AttentionBulkArgs, 384, 1) { wide<bf16, 64>(a); }
KERNEL(attention_hopper_128_bf16, AttentionBulkArgs, 384, 1) { wide<bf16, 128>(a); }
KERNEL(attention_hopper_64_f16, AttentionBulkArgs, 384, 1) { wide<f16, 64>(a); }
KERNEL(attention_hopper_128_f16, AttentionBulkArgs, 384, 1) { wide<f16, 128>(a); }
