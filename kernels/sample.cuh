// Candidates of text sampling and how they are selected: what the kernels of sample.cu are made of.
//
// A candidate is a 64-bit key that orders as (s, then smaller token): 11 bits of linear bins of s, 32 of s, 21 of the token. Keys are unique, so
// the k-th largest, or the one at which the mass reaches p, is found by digits, with no sort, and does not depend on the order of
// threads: counts are integers, masses are integers of 2^-42. s below -31.98 is no candidate: noise lies between -2.9 and 22.9,
// and the largest token, whose s is 0, is always left, so such a token is never drawn.
#pragma once
#include "args.cuh"
#include "device.cuh"
#include "elementary.cuh"

namespace {

using elementary::MINUS_INFINITY;

constexpr uint32_t SCAN_THREADS = 256, CHOOSE_THREADS = 512, CHOOSE_WARPS = CHOOSE_THREADS / 32;
constexpr uint32_t PART_BLOCKS = TEXT_CHUNK / TEXT_BLOCK, PART_WORDS = TEXT_CHUNK / 32;
constexpr uint32_t BINS = 2048, DIGIT = 11;
constexpr uint32_t TOKEN_BITS = 21, TOKEN_MASK = (1u << TOKEN_BITS) - 1;
constexpr uint32_t LIST = 4096;                      // candidates in shared memory; MAX_TOP blocks fit whatever they hold
constexpr uint32_t GROUP = 512;                      // keys that may share all but their last 9 bits
constexpr uint32_t FEW = 64;                         // keys that are quicker ranked than cut by another digit
constexpr uint32_t HEAD_BLOCKS = 512;                // blocks that top-p looks at first
constexpr uint32_t SEED_BLOCKS = 64;                 // blocks that a plain draw looks at first
constexpr uint64_t FLOOR = uint64_t(1) << 53;        // smallest key above the last bin
constexpr uint64_t LOWEST_TOKENS = ~uint64_t(TOKEN_MASK);
constexpr float FLOAT_MAX = 3.40282347e38f;
constexpr float GUMBEL_MAX = 22.9f;
constexpr float MASS_ONE = 4398046511104.0f;         // 2^42: 2^21 tokens of mass 1 fit

static_assert(MAX_TOP * TEXT_BLOCK <= LIST);
static_assert(CHOOSE_THREADS == GROUP && BINS % CHOOSE_THREADS == 0);

// ------------------------------------------------------------------------------------------------------------- rows and keys

// A grid has no more rows than there is room for, whatever the counts say.
__device__ bool is_text_row(const SampleArgs& a, uint32_t row) { return row < a.counts->text_rows; }

// A row whose logits lie in the buffer.
__device__ bool readable(const SampleArgs& a, const TextInfo& info) {
    return a.vocab <= a.logits_len && info.logits <= a.logits_len - a.vocab;
}

__device__ uint2 edits_of(const SampleArgs& a, const TextInfo& info) {   // (first, count)
    const bool inside = info.edit_first <= a.max_edits && info.edit_count <= a.max_edits - info.edit_first;
    return make_uint2(info.edit_first, inside ? info.edit_count : 0);
}

__device__ uint32_t token_of_edit(uint2 edit) { return edit.x & 0x3fffffffu; }

// Whether top-p needs the mass of the whole row.
__device__ bool wants_mass(const SampleArgs& a, const TextInfo& info) {
    return info.kind == TEXT_DRAW && info.top_p < 1.0f && (info.top_k == 0 || info.top_k >= a.vocab);
}

DEVICE_INLINE float scaled(float x, float max, float temperature) {
    return dev::div_rn(dev::sub_rn(fminf(x, FLOAT_MAX), max), temperature);
}

// Orders as (value, then smaller token); `below` is value - (something no value is above), rounded, or anything that orders as it does.
DEVICE_INLINE uint64_t make_key(float value, float below, uint32_t token) {
    const float bin = fmaxf(fminf(below * -64.0f, float(BINS - 1)), 0.0f);
    const uint64_t ordered = elementary::ordered(value);
    return uint64_t(BINS - 1 - static_cast<uint32_t>(bin)) << 53 | ordered << TOKEN_BITS | (TOKEN_MASK - min(token, TOKEN_MASK));
}
DEVICE_INLINE float value_of(uint64_t key) { return elementary::from_ordered(static_cast<uint32_t>(key >> TOKEN_BITS)); }
DEVICE_INLINE uint32_t token_of(uint64_t key) { return TOKEN_MASK - (static_cast<uint32_t>(key) & TOKEN_MASK); }
DEVICE_INLINE uint64_t mass_of(uint64_t key) { return static_cast<uint64_t>(elementary::exp(value_of(key)) * MASS_ONE); }

// A row as candidates: its own logits, or what is left of them after edits, masks and scaling.
struct View {
    const float* logits;
    const uint32_t* mask;      // null: the row's own logits, all of them
    const float* edited;
    const uint2* edits;
    uint32_t edit_count;
    uint32_t vocab;
    float max;
    float temperature;

    // 0: no candidate.
    DEVICE_INLINE uint64_t key(float x, uint32_t token) const {
        if (mask == nullptr) return x > MINUS_INFINITY ? make_key(x, dev::sub_rn(x, max), token) : 0;
        const float s = scaled(x, max, temperature);
        if (!(s > MINUS_INFINITY)) return 0;
        const uint64_t key = make_key(s, s, token);
        return key >= FLOOR ? key : 0;
    }
    DEVICE_INLINE bool has(uint32_t token) const {
        return mask == nullptr ? token < vocab : (mask[token / 32] >> token % 32 & 1) != 0;
    }
};

// ------------------------------------------------------------------------------------------------------------- selection

struct Found {
    uint64_t before;    // what lies above the digit
    uint32_t digit;
    uint32_t count;     // keys of the digit; 0: none was found
};

// Shared memory of a block of `sample_choose`.
struct Room {
    uint32_t* counts;       // [BINS] by digit: keys, and their masses in two words
    uint32_t* low;
    uint32_t* high;
    uint64_t* list;         // [LIST] candidates
    uint64_t* group;        // [GROUP] keys to be ranked, and their weights
    uint64_t* weights;
    uint64_t* partial;      // [CHOOSE_WARPS]
    Found* found;
    uint64_t* key;
    uint32_t* lengths;      // of list, group, active
    uint16_t* active;       // [blocks of the row] blocks to look at

    __device__ Room(unsigned char* shared, uint32_t blocks) {
        dev::Carver carver(shared);
        counts = carver.take<uint32_t>(BINS), low = carver.take<uint32_t>(BINS), high = carver.take<uint32_t>(BINS);
        list = carver.take<uint64_t>(LIST);
        group = carver.take<uint64_t>(GROUP), weights = carver.take<uint64_t>(GROUP);
        partial = carver.take<uint64_t>(CHOOSE_WARPS);
        found = carver.take<Found>(1), key = carver.take<uint64_t>(2), lengths = carver.take<uint32_t>(4);
        active = carver.take<uint16_t>(blocks);
    }
};
constexpr uint32_t IN_LIST = 0, IN_GROUP = 1, IN_ACTIVE = 2;

// The sum over the block's threads, the same in any order.
__device__ uint64_t block_sum(const Room& room, uint64_t x) {
    for (uint32_t lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(dev::FULL_MASK, x, lane);
    if (threadIdx.x % 32 == 0) room.partial[threadIdx.x / 32] = x;
    __syncthreads();
    uint64_t sum = 0;
    for (uint32_t i = 0; i < CHOOSE_WARPS; i++) sum += room.partial[i];
    __syncthreads();
    return sum;
}
__device__ uint64_t block_max(const Room& room, uint64_t x) {
    for (uint32_t lane = 16; lane > 0; lane /= 2) {
        const uint64_t other = __shfl_xor_sync(dev::FULL_MASK, x, lane);
        x = other > x ? other : x;
    }
    if (threadIdx.x % 32 == 0) room.partial[threadIdx.x / 32] = x;
    __syncthreads();
    for (uint32_t i = 0; i < CHOOSE_WARPS; i++) x = room.partial[i] > x ? room.partial[i] : x;
    __syncthreads();
    return x;
}

// Where a selection finds its keys: in the list, or in the row's active blocks and edits. `each` calls `f(key)`, from all threads.
struct Source {
    const Room& room;
    const View& view;
    bool listed;
    uint32_t length;    // of the list or of the active blocks

    template <class F>
    __device__ void each(const F& f) const {
        if (listed) {
            for (uint32_t i = threadIdx.x; i < length; i += CHOOSE_THREADS) f(room.list[i]);
            return;
        }
        constexpr uint32_t UNROLL = 2;
        for (uint32_t first = threadIdx.x; first < length * 16; first += CHOOSE_THREADS * UNROLL) {
            float x[UNROLL][4];
#pragma unroll
            for (uint32_t i = 0; i < UNROLL; i++) {
                const uint32_t unit = first + i * CHOOSE_THREADS;
                const uint32_t token = unit < length * 16 ? room.active[unit / 16] * TEXT_BLOCK + unit % 16 : NONE - 48;
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    x[i][j] = unit < length * 16 && view.has(token + 16 * j) ? view.logits[token + 16 * j] : MINUS_INFINITY;
            }
#pragma unroll
            for (uint32_t i = 0; i < UNROLL; i++) {
                const uint32_t unit = first + i * CHOOSE_THREADS;
                if (unit >= length * 16) continue;
#pragma unroll
                for (uint32_t j = 0; j < 4; j++) f(view.key(x[i][j], room.active[unit / 16] * TEXT_BLOCK + unit % 16 + 16 * j));
            }
        }
        for (uint32_t i = threadIdx.x; i < view.edit_count; i += CHOOSE_THREADS)
            f(view.key(view.edited[i], token_of_edit(view.edits[i])));
    }
};

// The maxima of the row's blocks as keys below which no block's largest candidate lies.
struct BlockMaxima {
    const View& view;
    const float* maxima;
    uint32_t blocks;

    template <class F>
    __device__ void each(const F& f) const {
        for (uint32_t i = threadIdx.x; i < blocks; i += CHOOSE_THREADS) f(view.key(maxima[i], i * TEXT_BLOCK + TEXT_BLOCK - 1));
    }
};

// Which digit, from the largest down, the weight of the keys reaches `goal` in: written to `room.found`.
template <bool MASS>
__device__ void find_digit(const Room& room, uint64_t before, uint64_t goal) {
    constexpr uint32_t OWN = BINS / CHOOSE_THREADS;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t weight[OWN], sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < OWN; i++) {
        const uint32_t digit = BINS - 1 - (threadIdx.x * OWN + i);
        weight[i] = MASS ? uint64_t(room.high[digit]) << 32 | room.low[digit] : room.counts[digit];
        sum += weight[i];
    }
    uint64_t through = sum;
    for (uint32_t step = 1; step < 32; step *= 2) {
        const uint64_t other = __shfl_up_sync(dev::FULL_MASK, through, step);
        through += lane >= step ? other : 0;
    }
    if (lane == 31) room.partial[warp] = through;
    __syncthreads();
    before += through - sum;
    for (uint32_t i = 0; i < warp; i++) before += room.partial[i];
#pragma unroll
    for (uint32_t i = 0; i < OWN; i++) {
        const uint32_t digit = BINS - 1 - (threadIdx.x * OWN + i);
        if (before < goal && goal <= before + weight[i]) *room.found = Found{before, digit, room.counts[digit]};
        before += weight[i];
    }
}

// The largest key at which the weight (mass, or 1) of all keys from the largest down to it reaches `goal`, above 0; of the keys from `lower` up,
// which is above 0. 0 if they are not enough.
template <bool MASS, class From>
__device__ uint64_t select(const Room& room, const From& from, uint64_t lower, uint64_t goal) {
    uint64_t before = 0, prefix = 0;
    for (uint32_t shift = 64 - DIGIT;; shift -= DIGIT) {
        const auto inside = [=](uint64_t key) { return key >= lower && (shift + DIGIT == 64 || key >> (shift + DIGIT) == prefix); };
        for (uint32_t i = threadIdx.x; i < BINS; i += CHOOSE_THREADS) room.counts[i] = room.low[i] = room.high[i] = 0;
        __syncthreads();
        // What was found last has been read: everybody is past the barrier.
        if (threadIdx.x == 0) room.found->count = 0, room.lengths[IN_GROUP] = 0, *room.key = 0;
        from.each([&](uint64_t key) {
            if (!inside(key)) return;
            const uint32_t digit = static_cast<uint32_t>(key >> shift) & (BINS - 1);
            atomicAdd(&room.counts[digit], 1u);
            if (MASS) {
                const uint64_t mass = mass_of(key);
                const uint32_t low = static_cast<uint32_t>(mass), old = atomicAdd(&room.low[digit], low);
                const uint32_t high = static_cast<uint32_t>(mass >> 32) + (old + low < old ? 1 : 0);
                if (high != 0) atomicAdd(&room.high[digit], high);
            }
        });
        __syncthreads();
        find_digit<MASS>(room, before, goal);
        __syncthreads();
        const Found found = *room.found;
        if (found.count == 0) return 0;
        before = found.before, prefix = prefix << DIGIT | found.digit;
        if (found.count > FEW && shift > DIGIT) continue;
        from.each([&](uint64_t key) {
            if (key < lower || key >> shift != prefix) return;
            const uint32_t at = atomicAdd(&room.lengths[IN_GROUP], 1u);
            if (at < GROUP) room.group[at] = key, room.weights[at] = MASS ? mass_of(key) : 1;
        });
        __syncthreads();
        const uint32_t count = min(room.lengths[IN_GROUP], GROUP);
        if (threadIdx.x < count) {
            const uint64_t mine = room.group[threadIdx.x];
            uint64_t above = before;
            for (uint32_t i = 0; i < count; i++) above += room.group[i] > mine ? room.weights[i] : 0;
            if (above < goal && goal <= above + room.weights[threadIdx.x]) *room.key = mine;
        }
        __syncthreads();
        return *room.key;
    }
}

// Lists the blocks that may hold keys from `lower` up; returns how many.
__device__ uint32_t activate(const Room& room, const BlockMaxima& from, uint64_t lower) {
    if (threadIdx.x == 0) room.lengths[IN_ACTIVE] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < from.blocks; i += CHOOSE_THREADS)
        if (from.view.key(from.maxima[i], i * TEXT_BLOCK) >= lower) room.active[atomicAdd(&room.lengths[IN_ACTIVE], 1u)] = static_cast<uint16_t>(i);
    __syncthreads();
    return room.lengths[IN_ACTIVE];
}

// Collects the keys of `from` from `lower` up in `keys`, with room for `most`; returns how many there are.
__device__ uint32_t collect(const Room& room, const Source& from, uint64_t lower, uint64_t* keys, uint32_t which, uint32_t most) {
    if (threadIdx.x == 0) room.lengths[which] = 0;
    __syncthreads();
    from.each([&](uint64_t key) {
        if (key < lower) return;
        const uint32_t at = atomicAdd(&room.lengths[which], 1u);
        if (at < most) keys[at] = key;
    });
    __syncthreads();
    return room.lengths[which];
}

}  // namespace
