// The best `width` of a stream of distinct 64-bit keys, by one block of sid::THREADS threads, exactly.
//
// Keys are gathered in shared memory. Where they might not fit, a first pass keeps each thread's best score; the k-th best of each warp's 32,
// with k = width / warps, bounds the answer from below: at least `width` keys reach the smallest of these. What passes that bound
// is usually a small multiple of the width. Where it is not (ties, wide beams) the bound is made exact digit by digit, largest first.
#pragma once
#include "sid.cuh"

namespace sid {

template <uint32_t ROOM>
struct Best {
    uint64_t key[ROOM];
    uint32_t ref[ROOM];     // what the stream said of each key
    uint32_t histogram[256];
    uint32_t warp[WARPS];
    uint32_t count;
    uint32_t digit;
    uint32_t above;
};

// The lane's place in descending order: the k-th largest of a warp's values, from 0.
DEVICE_INLINE uint32_t kth_largest(uint32_t value, uint32_t k) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t size = 2; size <= 32; size *= 2) {
#pragma unroll
        for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
            const uint32_t other = __shfl_xor_sync(dev::FULL_MASK, value, static_cast<int>(stride));
            const bool keeps_larger = ((lane & stride) == 0) == ((lane & size) == 0);
            value = keeps_larger ? max(value, other) : min(value, other);
        }
    }
    // With size 32 no lane has the bit: descending from lane 0.
    return __shfl_sync(dev::FULL_MASK, value, static_cast<int>(k));
}

// Narrows `floor`, an ordered score, by the best score that each thread sees.
template <uint32_t ROOM, class Each>
DEVICE_INLINE uint32_t sift(Best<ROOM>& s, uint32_t width, uint32_t floor, Each each) {
    uint32_t best = 0, own_floor = floor;
    each(own_floor, [&](uint64_t key, uint32_t) {
        best = max(best, score_bits(key));
        own_floor = max(own_floor, best);
    });
    const uint32_t bound = kth_largest(best, (width + WARPS - 1) / WARPS - 1);
    if (threadIdx.x % 32 == 0) s.warp[threadIdx.x / 32] = bound;
    __syncthreads();
    uint32_t least = s.warp[0];
#pragma unroll
    for (uint32_t w = 1; w < WARPS; w++) least = min(least, s.warp[w]);
    return max(floor, least);
}

// The smallest key of a lower bound that at most `room` keys reach and at least `width` do; more than `room` keys reach `floor`.
template <uint32_t ROOM, class Each>
DEVICE_INLINE uint64_t narrow(Best<ROOM>& s, uint32_t room, uint32_t width, uint32_t floor, Each each) {
    uint64_t prefix = 0;
    uint32_t above = 0;
    for (int shift = 56;; shift -= 8) {
        if (threadIdx.x < 256) s.histogram[threadIdx.x] = 0;
        __syncthreads();
        uint32_t own_floor = floor;
        each(own_floor, [&](uint64_t key, uint32_t) {
            if (shift == 56 || key >> (shift + 8) == prefix) atomicAdd(&s.histogram[key >> shift & 255], 1u);
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            // Lane i holds the eight digits down from 255 - 8 i.
            const uint32_t lane = threadIdx.x;
            uint32_t sum = 0;
            for (uint32_t i = 0; i < 8; i++) sum += s.histogram[255 - 8 * lane - i];
            uint32_t upto = sum;
#pragma unroll
            for (uint32_t step = 1; step < 32; step *= 2) {
                const uint32_t left = __shfl_up_sync(dev::FULL_MASK, upto, step);
                upto += lane >= step ? left : 0;
            }
            upto += above;
            const uint32_t reached = __ballot_sync(dev::FULL_MASK, upto >= width);
            // Too few keys cannot be; the last digit is then as good as any.
            const uint32_t owner = reached == 0 ? 31u : static_cast<uint32_t>(__ffs(static_cast<int>(reached)) - 1);
            if (lane == owner) {
                uint32_t before = upto - sum, digit = 255 - 8 * lane;
                for (uint32_t i = 0; i < 7 && before + s.histogram[digit] < width; i++) before += s.histogram[digit--];
                s.digit = digit;
                s.above = before;
            }
        }
        __syncthreads();
        prefix = prefix << 8 | s.digit;
        above = s.above;
        const uint32_t reach = above + s.histogram[s.digit];
        if (reach <= room || shift == 0) return prefix << shift;
        __syncthreads();    // the histogram is cleared next
    }
}

// Gathers at most `room` keys, among them the best `width` of the stream, in no order; returns how many.
//
// `each(floor, visit)` calls visit(key, ref) for those of this thread's keys whose score reaches `floor`, which it is given by reference
// and may find risen after a visit. `width` <= `room` <= ROOM. `bound` is raised to a score that the best `width` all reach
// if one is found. The block must not be reading `s` when it calls.
template <uint32_t ROOM, class Each>
DEVICE_INLINE uint32_t best_of(Best<ROOM>& s, uint32_t room, uint32_t width, bool many, uint32_t& bound, Each each) {
    uint32_t floor = bound;
    if (threadIdx.x == 0) s.count = 0;
    if (many && width <= THREADS) {
        floor = sift(s, width, floor, each);
    } else {
        __syncthreads();
    }
    bound = floor;
    for (uint64_t lowest = 0;;) {
        uint32_t own_floor = max(floor, score_bits(lowest));
        each(own_floor, [&](uint64_t key, uint32_t ref) {
            if (key < lowest) return;
            const uint32_t at = atomicAdd(&s.count, 1u);
            if (at >= room) return;
            s.key[at] = key;
            s.ref[at] = ref;
        });
        __syncthreads();
        const uint32_t count = s.count;
        if (count <= room) return count;
        lowest = narrow(s, room, width, floor, each);
        bound = max(floor, score_bits(lowest));
        if (threadIdx.x == 0) s.count = 0;
        __syncthreads();
    }
}

// Sorts `count` keys with their refs, largest first. Keys beyond, up to the next power of two (at most ROOM), are overwritten.
template <uint32_t ROOM>
DEVICE_INLINE void sort_descending(Best<ROOM>& s, uint32_t count) {
    uint32_t padded = 2;
    while (padded < count) padded *= 2;
    for (uint32_t i = count + threadIdx.x; i < padded; i += THREADS) {
        s.key[i] = 0;
    }
    __syncthreads();
    for (uint32_t size = 2; size <= padded; size *= 2) {
        for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
            for (uint32_t pair = threadIdx.x; pair < padded / 2; pair += THREADS) {
                const uint32_t low = pair / stride * 2 * stride + pair % stride, high = low + stride;
                const uint64_t a = s.key[low], b = s.key[high];
                const bool descending = (low & size) == 0;
                if (descending ? a < b : a > b) {
                    s.key[low] = b;
                    s.key[high] = a;
                    const uint32_t ref = s.ref[low];
                    s.ref[low] = s.ref[high];
                    s.ref[high] = ref;
                }
            }
            // Strides below 32 stay within the 64 keys of a warp's 32 pairs.
            if (stride > 32 || (stride == 1 && size >= 64)) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    __syncthreads();
}

}  // namespace sid
