// Scoring one row of a search: its normaliser, its alive children, the best of them.
//
// score(child) = score(row) + (logit[code] - norm), in that order, each operation rounded; norm is the logarithm of the sum of exponentials over
// the codebook (or what else the search is normalised over). A child costs its code (2 bytes), its logit and a comparison; liveness
// is asked only of children that could be kept. A wide node costs its children and a narrow one next to nothing; only the normaliser
// costs the codebook. Logits are read from memory once, by the normaliser, in four 16-byte loads per thread at a time, and again from the
// caches by the scan.
//
// Two roads. The plain one sums in an order of its own, with the special function unit: 8,192 exponentials in the host's 25 operations each would
// take as long as reading them. The general one (normalised over alive children, or drawn) follows src/device/cpu/sid/draw.rs and
// logsum.rs operation by operation and gives the host's bits.
#pragma once
#include <math.h>

#include "sid_best.cuh"

namespace sid {

constexpr float LOG2_E = 1.44269504088896340736f;

// ---------------------------------------------------------------------------------------------------------------- liveness

// The first place of a sorted list whose number is not below `value`.
DEVICE_INLINE uint32_t lower_bound(const uint32_t* list, uint32_t len, uint32_t value) {
    uint32_t first = 0;
    while (len > 0) {
        const uint32_t half = len / 2;
        const bool below = list[first + half] < value;
        first = below ? first + half + 1 : first;
        len = below ? len - half - 1 : half;
    }
    return first;
}

DEVICE_INLINE uint32_t count_sorted(const uint32_t* list, uint32_t len, uint32_t first, uint32_t end) {
    const uint32_t from = lower_bound(list, len, first);
    // Most intervals are narrow and hold none: no second search for them.
    if (from == len || list[from] >= end) return 0;
    return lower_bound(list + from, len - from, end);
}

// Set bits before `end`.
DEVICE_INLINE uint32_t bit_rank(const SidMask& mask, uint32_t end) {
    const uint32_t word = end / 64, block = word / 8;
    uint32_t count = mask.before[block];
    for (uint32_t w = block * 8; w < word; w++) count += __popcll(mask.words[w]);
    if (end % 64 != 0) count += __popcll(mask.words[word] & ((1ull << (end % 64)) - 1));
    return count;
}

// Whether any SID of [first, end) is alive.
static __device__ __noinline__ bool any_alive(const SidMask& mask, uint32_t first, uint32_t end) {
    if (first >= end) return false;
    uint32_t alive = end - first;
    if (mask.base == MASK_BITS) {
        alive = alive == 1 ? mask.words[first / 64] >> (first % 64) & 1 : bit_rank(mask, end) - bit_rank(mask, first);
    } else if (mask.base == MASK_LIST) {
        alive = count_sorted(mask.list, mask.list_len, first, end);
    }
    if (alive == 0 || alive > mask.dead_len) return alive > 0;
    return alive > count_sorted(mask.dead, mask.dead_len, first, end);
}

DEVICE_INLINE unsigned long long taken_key(uint32_t place, uint32_t sid) { return (static_cast<unsigned long long>(place) << 32 | sid) + 1; }
DEVICE_INLINE uint32_t taken_slot(unsigned long long key) {
    return static_cast<uint32_t>(key * 0x9e3779b97f4a7c15ull >> 32) % TAKEN_ROOM;
}

// Whether an earlier group has finished a SID at this level.
DEVICE_INLINE bool is_taken(const unsigned long long* table, uint32_t place, uint32_t sid) {
    const unsigned long long key = taken_key(place, sid);
    for (uint32_t at = taken_slot(key), probes = 0; probes < TAKEN_ROOM; at = (at + 1) % TAKEN_ROOM, probes++) {
        const unsigned long long found = table[at];
        if (found == key) return true;
        if (found == 0) return false;
    }
    return false;
}

// ---------------------------------------------------------------------------------------------------------------- children

// The first entry from `from` on, below `end`, that is not `code`, in steps that double; codes ascend.
DEVICE_INLINE uint32_t run_end(const uint16_t* codes, uint32_t from, uint32_t end, uint32_t code) {
    uint32_t step = 1;
    while (step <= end - from && codes[from + step - 1] == code) {
        from += step;
        step *= 2;
    }
    uint32_t high = step <= end - from ? from + step - 1 : end;
    while (from < high) {
        const uint32_t middle = from + (high - from) / 2;
        if (codes[middle] == code) {
            from = middle + 1;
        } else {
            high = middle;
        }
    }
    return from;
}

// The same by a whole warp: 32 probes at a time.
DEVICE_INLINE uint32_t warp_run_end(const uint16_t* codes, uint32_t from, uint32_t end, uint32_t code) {
    const uint32_t lane = threadIdx.x % 32;
    while (from < end) {
        const uint32_t step = (end - from - 1) / 32 + 1;
        const uint64_t probe = uint64_t(from) + uint64_t(lane) * step + step - 1;
        const bool same = probe < end && codes[probe] == code;
        const uint32_t segments = __popc(__ballot_sync(dev::FULL_MASK, same));
        const uint64_t high = uint64_t(from) + uint64_t(segments + 1) * step - 1;
        end = static_cast<uint32_t>(high < end ? high : end);
        from += segments * step;
    }
    return from;
}

// A node of the trie and the logits of its children.
struct Source {
    const float* logits;        // [codebook]
    const uint16_t* codes;
    const SidSlot* slot;        // the rest, looked up where it is needed: seldom
    uint32_t first;
    uint32_t end;
    uint32_t kind;

    DEVICE_INLINE const uint32_t* start() const { return slot->level->start; }
    DEVICE_INLINE const SidType& type() const { return *slot->type; }
};

DEVICE_INLINE Source source_of(const SidSlot& slot, const float* logits) {
    return {logits + slot.logits, slot.level->codes, &slot, slot.first, slot.end, slot.kind};
}

constexpr uint32_t WARP_CHUNK = 256;

// Calls visit(entry, code) for every child, spread over the block's threads. Whole warps call it.
template <class Visit>
DEVICE_INLINE void for_each_child(const Source& s, Visit visit) {
    if (!(s.kind & KIND_RUNS)) {
        for (uint64_t at = uint64_t(s.first) + threadIdx.x; at < s.end; at += THREADS) visit(static_cast<uint32_t>(at), uint32_t(s.codes[at]));
        return;
    }
    // A child is a run of equal codes. Each warp takes chunks; one that lies within a run is left behind together with all that follow in it.
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t chunks = (s.end - s.first - 1) / WARP_CHUNK + 1;
    for (uint32_t chunk = warp; s.first < s.end && chunk < chunks;) {
        const uint32_t begin = s.first + chunk * WARP_CHUNK, end = min(WARP_CHUNK, s.end - begin) + begin;
        if (chunk > 0) {
            const uint32_t before = s.codes[begin - 1];
            if (before == s.codes[end - 1]) {
                const uint32_t next = (warp_run_end(s.codes, end, s.end, before) - s.first) / WARP_CHUNK;
                chunk += (next - chunk + WARPS - 1) / WARPS * WARPS;
                continue;
            }
        }
        for (uint32_t at = begin + lane; at < end; at += 32) {
            const uint32_t code = s.codes[at];
            if (at == s.first || s.codes[at - 1] != code) visit(at, code);
        }
        chunk += WARPS;
    }
}

// Calls visit(BESIDE, code) for every child that the delta's node has, spread over the block's threads. A delta is small: no run is long enough
// to be skipped.
template <class Visit>
DEVICE_INLINE void for_each_beside(const SidSlot& slot, Visit visit) {
    const uint16_t* const codes = slot.delta->codes;
    for (uint64_t at = uint64_t(slot.delta_first) + threadIdx.x; at < slot.delta_end; at += THREADS) {
        const uint32_t code = codes[at];
        if (!(slot.kind & KIND_DELTA_RUNS) || at == slot.delta_first || codes[at - 1] != code) visit(BESIDE, code);
    }
}

// Calls visit(entry, code) for every child of a pair of nodes; a code that both have is visited twice, and only the snapshot's entry is alive.
template <class Visit>
DEVICE_INLINE void for_each_of_both(const Source& s, Visit visit) {
    for_each_child(s, visit);
    if (s.kind & KIND_DELTA) for_each_beside(*s.slot, visit);
}

// The first entry of [first, end) that a code leads to, or NONE.
static __device__ __noinline__ uint32_t entry_of(const uint16_t* codes, uint32_t first, uint32_t end, uint32_t code) {
    uint32_t high = end;
    while (first < high) {
        const uint32_t middle = first + (high - first) / 2;
        if (codes[middle] < code) {
            first = middle + 1;
        } else {
            high = middle;
        }
    }
    return first < end && codes[first] == code ? first : NONE;
}

// ---------------------------------------------------------------------------------------------------- log-sum-exp of a codebook

struct LogSum {
    float max;      // NaN if a value is
    float norm;
};

// ln sum exp of x [n], by the whole block, in an order given by n alone. `maxima` and `sums` are [WARPS].
DEVICE_INLINE LogSum block_log_sum(const float* x, uint32_t n, float* maxima, float* sums) {
    float max = elementary::MINUS_INFINITY, sum = 0.0f;
    bool nan = false;
    const auto add = [&](const float (&v)[16]) {
        float largest = v[0];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            largest = fmaxf(largest, v[i]);
            nan |= elementary::is_nan(v[i]);
        }
        if (largest > max) {
            sum *= dev::exp2_approx((max - largest) * LOG2_E);
            max = largest;
        }
        const float shift = max == elementary::MINUS_INFINITY ? 0.0f : max;
#pragma unroll
        for (int i = 0; i < 16; i++) sum += dev::exp2_approx((v[i] - shift) * LOG2_E);
    };
    if (n % 4 == 0 && reinterpret_cast<uint64_t>(x) % 16 == 0) {
        for (uint32_t first = threadIdx.x; first < n / 4; first += 4 * THREADS) {
            float v[16];
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const bool inside = first + i * THREADS < n / 4;
                const uint4 four = inside ? dev::load16(x + 4 * size_t(first + i * THREADS)) : make_uint4(0xff800000u, 0xff800000u, 0xff800000u, 0xff800000u);
                v[4 * i] = __uint_as_float(four.x);
                v[4 * i + 1] = __uint_as_float(four.y);
                v[4 * i + 2] = __uint_as_float(four.z);
                v[4 * i + 3] = __uint_as_float(four.w);
            }
            add(v);
        }
    } else {
        for (uint32_t first = threadIdx.x; first < n; first += 16 * THREADS) {
            float v[16];
#pragma unroll
            for (uint32_t i = 0; i < 16; i++) v[i] = first + i * THREADS < n ? x[first + i * THREADS] : elementary::MINUS_INFINITY;
            add(v);
        }
    }
    float largest = max;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(dev::FULL_MASK, largest, step));
    if (__any_sync(dev::FULL_MASK, nan)) largest = __uint_as_float(0x7fc00000u);
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = largest;
    __syncthreads();
    largest = maxima[0];
    nan = elementary::is_nan(largest);
#pragma unroll
    for (uint32_t w = 1; w < WARPS; w++) {
        largest = fmaxf(largest, maxima[w]);
        nan |= elementary::is_nan(maxima[w]);
    }
    sum = max == elementary::MINUS_INFINITY ? 0.0f : sum * dev::exp2_approx((max - largest) * LOG2_E);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(dev::FULL_MASK, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) sum += sums[w];
    if (nan) return {__uint_as_float(0x7fc00000u), __uint_as_float(0x7fc00000u)};
    return {largest, elementary::log_sum(largest, sum)};
}

// ln sum exp of x [n] in shared memory by one warp, in the host's order; NaN if a value is.
DEVICE_INLINE float warp_log_sum(const float* x, uint32_t n) {
    const uint32_t lane = threadIdx.x % 32;
    float largest = elementary::MINUS_INFINITY;
    bool nan = false;
    for (uint32_t i = lane; i < n; i += 32) {
        largest = fmaxf(largest, x[i]);
        nan |= elementary::is_nan(x[i]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(dev::FULL_MASK, largest, step));
    if (__any_sync(dev::FULL_MASK, nan)) return __uint_as_float(0x7fc00000u);
    if (elementary::is_infinite(largest)) return largest;
    float sum = 0.0f;
    for (uint32_t i = lane; lane < 16 && i < n; i += 16) sum = dev::add_rn(sum, elementary::exp(dev::sub_rn(x[i], largest)));
#pragma unroll
    for (int step = 8; step > 0; step /= 2) sum = dev::add_rn(sum, __shfl_down_sync(dev::FULL_MASK, sum, step));
    return elementary::log_sum(largest, __shfl_sync(dev::FULL_MASK, sum, 0));
}

// ------------------------------------------------------------------------------------------------------------------- rows

// Shared memory of scoring a row.
struct RowShared {
    Best<ROW_ROOM> best;
    float norms[MAX_TYPES];
    float maxima[WARPS];
    float sums[WARPS];
    uint32_t floor;
    float norm;
};

// First SID below a child.
DEVICE_INLINE uint32_t first_sid(const Source& s, uint32_t entry) {
    const uint32_t* const start = s.start();
    return start != nullptr ? start[entry] : entry;
}

// SIDs below a child.
DEVICE_INLINE void sids_of(const Source& s, uint32_t entry, uint32_t code, uint32_t& first, uint32_t& end) {
    const uint32_t* const start = s.start();
    if (start != nullptr) {
        first = start[entry];
        end = start[entry + 1];
    } else {
        first = entry;
        end = s.kind & KIND_RUNS ? run_end(s.codes, entry + 1, s.end, code) : entry + 1;
    }
}

DEVICE_INLINE bool is_alive(const Source& s, uint32_t entry, uint32_t code) {
    if (!(s.kind & KIND_MASKED)) return true;
    uint32_t first, end;
    sids_of(s, entry, code, first, end);
    return any_alive(s.type().mask, first, end);
}

// Whether the delta has a code of a node, and alive; of the delta's own entries, those that the snapshot has not.
static __device__ __noinline__ bool is_alive_beside(const SidSlot& slot, uint32_t own, uint32_t code) {
    if (own == BESIDE && entry_of(slot.level->codes, slot.first, slot.end, code) != NONE) return false;
    const SidLevel& level = *slot.delta;
    const uint32_t entry = entry_of(level.codes, slot.delta_first, slot.delta_end, code);
    if (entry == NONE) return false;
    uint32_t first = entry, end = entry + 1;
    if (level.start != nullptr) {
        first = level.start[entry];
        end = level.start[entry + 1];
    } else if (slot.kind & KIND_DELTA_RUNS) {
        end = run_end(level.codes, entry + 1, slot.delta_end, code);
    }
    return any_alive(slot.type->delta_mask, first, end);
}

// Whether a child of a pair is alive. What both have is the snapshot's entry; the delta's entry of it is none.
DEVICE_INLINE bool is_alive_in_either(const Source& s, uint32_t entry, uint32_t code) {
    if (entry != BESIDE) {
        if (is_alive(s, entry, code)) return true;
        if (!(s.kind & KIND_DELTA)) return false;
    }
    return is_alive_beside(*s.slot, entry, code);
}

// The number of the first SID below a code that only the delta has.
static __device__ __noinline__ uint32_t sid_beside(const SidSlot& slot, uint32_t code) {
    if (!(slot.kind & KIND_DELTA)) return NONE;
    const uint32_t found = entry_of(slot.delta->codes, slot.delta_first, slot.delta_end, code);
    if (found == NONE) return NONE;
    return slot.type->sids + (slot.delta->start != nullptr ? slot.delta->start[found] : found);
}

// What identifies a child of a pair: the first SID below it.
DEVICE_INLINE uint32_t identity(const Source& s, uint32_t entry, uint32_t code) {
    return entry != BESIDE ? first_sid(s, entry) : sid_beside(*s.slot, code);
}

DEVICE_INLINE bool is_free(const SidSearch& search, const Source& s, uint32_t entry, uint32_t code) {
    if (search.taken == nullptr) return true;
    return !is_taken(search.taken, s.slot->place, identity(s, entry, code));
}

// The score that decides the choice.
DEVICE_INLINE float charge(const SidSearch& search, const SidType& type, float score, uint32_t code) {
    if (search.uses == nullptr) return score;
    return dev::sub_rn(score, dev::mul_rn(search.penalty, static_cast<float>(search.uses[type.uses_base + code])));
}

// The best children of a row: those that might be among the best `width`, in `s.best`; returns how many. With DELTA, of a pair of nodes.
template <bool DELTA, class Candidate>
DEVICE_INLINE uint32_t best_children(RowShared& s, const Source& source, uint32_t room, uint32_t width, uint32_t& bound, Candidate candidate) {
    bool many = source.end - source.first > room;
    if (DELTA && (source.kind & KIND_DELTA)) many = uint64_t(source.end - source.first) + (source.slot->delta_end - source.slot->delta_first) > room;
    return best_of(s.best, room, width, many, bound, [&](uint32_t& floor, auto visit) {
        float failed = elementary::MINUS_INFINITY;
        const auto offer = [&](uint32_t entry, uint32_t code) {
            uint64_t key;
            if (candidate(entry, code, floor, failed, key)) visit(key, entry);
        };
        if constexpr (DELTA) {
            for_each_of_both(source, offer);
        } else {
            for_each_child(source, offer);
        }
    });
}

// A child's key on the plain road, if its score reaches the floor and it is alive.
DEVICE_INLINE bool plain_candidate(const Source& s, float from, float norm, uint32_t parent, uint32_t entry, uint32_t code, uint32_t floor, uint64_t& key) {
    const float logit = s.logits[code];
    const bool nan = elementary::is_nan(logit);
    const float score = elementary::add_score(from, elementary::log_probability(logit, norm));
    if (!nan && elementary::ordered(score) < floor) return false;
    if (!is_alive(s, entry, code)) return false;
    if (nan) {
        atomicOr(&s.slot->search->fault, 1u);
        return false;
    }
    key = key_of(score, parent, code);
    return true;
}

// Writes a row's survivors and what selection needs to know of the row. The block may not touch `best` again before a barrier.
DEVICE_INLINE void write_row(const SidStepArgs& a, const SidSlot& slot, uint32_t slot_at, const RowShared& s, const SidScore& score) {
    for (uint32_t i = threadIdx.x; i < score.count; i += THREADS) {
        a.keys[slot.keys_at + size_t(i)] = s.best.key[i];
        a.entries[slot.keys_at + size_t(i)] = s.best.ref[i];
    }
    if (threadIdx.x == 0) a.scores[slot_at] = score;
}

// The normaliser of a row on the plain road and the largest logit of its own codebook.
DEVICE_INLINE LogSum plain_norm(const SidStepArgs& a, const SidSlot& slot, RowShared& s) {
    LogSum own = block_log_sum(a.logits + slot.logits, slot.codebook, s.maxima, s.sums);
    if (slot.norm_at != NONE) {
        own.norm = a.norms[slot.norm_at];
    } else if (slot.siblings != NONE) {
        // The first level: the sums of all requested types, then the sum of those.
        const uint32_t types = slot.search->type_count;
        for (uint32_t t = 0; t < types; t++) {
            const SidSlot& other = a.slots[slot.siblings + t];
            // A sibling that was not resolved for this plan has no logits.
            const bool known = other.epoch == slot.epoch && other.search == slot.search;
            const float norm = !known ? __uint_as_float(0x7fc00000u) : block_log_sum(a.logits + other.logits, other.codebook, s.maxima, s.sums).norm;
            if (threadIdx.x == 0) s.norms[t] = norm;
        }
        __syncthreads();
        own.norm = warp_log_sum(s.norms, types);
    }
    return own;
}

// Scores a row whose normaliser is its codebook's or the vocabulary's, and which has no part in a delta.
DEVICE_INLINE void score_plain(const SidStepArgs& a, const SidSlot& slot, uint32_t slot_at, RowShared& s) {
    // Rows ahead of this one may have raised it: what is below has no chance any more. All threads go by one value of it.
    if (threadIdx.x == 0) s.floor = slot.search->cap != 0 ? 0 : *const_cast<const volatile uint32_t*>(&slot.search->floor);
    const LogSum sum = plain_norm(a, slot, s);
    SidScore score{sum.norm, 0.0f, 0.0f, 0};
    if (elementary::is_nan(sum.norm)) {
        if (threadIdx.x == 0) atomicOr(&slot.search->fault, 1u);
    } else {
        const uint32_t floor = s.floor;
        const float top = elementary::add_score(slot.score, elementary::log_probability(sum.max, sum.norm));
        // A row whose largest logit has no chance has no child with one; if there may be a NaN among them, it has to be looked for.
        if (elementary::is_nan(sum.max) || elementary::ordered(top) >= floor) {
            const Source source = source_of(slot, a.logits);
            const float from = slot.score;
            const uint32_t parent = slot.parent;
            uint32_t bound = floor;
            score.count = best_children<false>(s, source, slot.room, slot.width, bound, [&](uint32_t entry, uint32_t code, uint32_t floor, float&, uint64_t& key) {
                return plain_candidate(source, from, sum.norm, parent, entry, code, floor, key);
            });
            if (threadIdx.x == 0 && bound > floor && slot.search->cap == 0) atomicMax(&slot.search->floor, bound);
        }
    }
    write_row(a, slot, slot_at, s, score);
}

}  // namespace sid
