// Scoring one row of a search that is normalised over its alive children, drawn, charged for what earlier groups chose, or capped
// while groups share the cap: the host's operations in the host's order (src/device/cpu/sid/draw.rs), by one block.
//
// Drawing: with own = phi + noise for each child, Z the largest of them and G the parent's perturbed score, a child's is
// -ln(exp(-G) - exp(-Z) + exp(-own)), in the form that neither overflows nor cancels; in float64 and rounded once, so that
// libraries that differ in the last place agree.
#pragma once
#include "sid_row.cuh"

namespace sid {

// A row on its way: where its children are, and what their scores are made from.
struct Row {
    Source source;
    float norm;
    float drawn_norm;
    float largest;
    uint32_t group;
};

// Shared memory of the general road.
struct GeneralShared {
    float terms[THREADS];
    uint32_t ranks[WARPS];
    float value;
};

DEVICE_INLINE double ln_1m_exp(double x) { return x > -0.693147180559945309417 ? ::log(-::expm1(x)) : ::log1p(-::exp(x)); }

// The perturbed score `own` on the condition that the largest, `largest`, was `parent`'s; minus infinity stays.
static __device__ __noinline__ float conditioned(float parent, float largest, float own) {
    if (own == elementary::MINUS_INFINITY) return own;
    if (own >= largest) return parent;
    const double p = parent, o = own, v = p - o + ln_1m_exp(o - static_cast<double>(largest));
    return static_cast<float>(p - ::fmax(v, 0.0) - ::log1p(::exp(-::fabs(v))));
}

// The largest of a value per thread, by the whole block. `partial` is RowShared.sums: block_log_sum, which may follow, writes there only after
// a barrier.
DEVICE_INLINE float block_max(float value, float* partial) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(dev::FULL_MASK, value, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[0];
    for (uint32_t w = 1; w < WARPS; w++) value = fmaxf(value, partial[w]);
    return value;
}

// The children that a row competes with for probability: its own, or at the first level those of all requested types.
struct Family {
    const SidStepArgs* args;
    const SidSlot* slot;

    DEVICE_INLINE uint32_t size() const { return slot->siblings == NONE ? 1 : slot->search->type_count; }
    DEVICE_INLINE const SidSlot& member(uint32_t i) const { return slot->siblings == NONE ? *slot : args->slots[slot->siblings + i]; }
    // Whether all members were resolved for this plan.
    DEVICE_INLINE bool known() const {
        for (uint32_t i = 0; i < size(); i++) {
            if (member(i).epoch != slot->epoch || member(i).search != slot->search) return false;
        }
        return true;
    }
};

// The entries of a pair of nodes in the order of codes, the snapshot's first where they are equal: what the host's order of sums is made of.
struct Merged {
    const uint16_t* codes;      // from the node's first on
    const uint16_t* delta;
    uint32_t base_len;
    uint32_t delta_len;

    DEVICE_INLINE uint64_t len() const { return uint64_t(base_len) + delta_len; }
    // How many of the first `at` are the snapshot's.
    DEVICE_INLINE uint32_t split(uint64_t at) const {
        uint32_t low = at > delta_len ? static_cast<uint32_t>(at - delta_len) : 0, high = static_cast<uint32_t>(min(at, uint64_t(base_len)));
        while (low < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (codes[middle] <= delta[at - 1 - middle]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }
    // Whether the one at `at` begins a child; which, and its code.
    DEVICE_INLINE bool child(const Source& s, uint64_t at, uint32_t& entry, uint32_t& code) const {
        const uint32_t i = split(at), j = static_cast<uint32_t>(at - i);
        const bool in_base = i < base_len && (j >= delta_len || codes[i] <= delta[j]);
        const uint16_t* const own = in_base ? codes + i : delta + j;
        entry = in_base ? s.first + i : BESIDE;
        code = *own;
        return !(s.kind & (in_base ? KIND_RUNS : KIND_DELTA_RUNS)) || (in_base ? i : j) == 0 || own[-1] != code;
    }
};

DEVICE_INLINE Merged merged_of(const Source& s) {
    if (!(s.kind & KIND_DELTA)) return {s.codes + s.first, nullptr, s.end - s.first, 0};
    const SidSlot& slot = *s.slot;
    return {s.codes + s.first, slot.delta->codes + slot.delta_first, s.end - s.first, slot.delta_end - slot.delta_first};
}

// A logit at a temperature; 0 stands for none.
DEVICE_INLINE float scaled(float logit, float temperature) { return temperature == 0.0f ? logit : dev::div_rn(logit, temperature); }

// ln sum exp of the family's alive children's logits, in the host's order; those taken are left out if there is a temperature.
// A NaN in an alive child's logit is a fault.
// Not inlined: registers.
static __device__ __noinline__ float family_log_sum(const SidStepArgs& a, const SidSlot& slot, float temperature, RowShared& s, GeneralShared& g) {
    const Family family{&a, &slot};
    SidSearch& search = *slot.search;
    const bool skips_taken = temperature != 0.0f;
    const auto counts = [&](const Source& source, uint32_t entry, uint32_t code) {
        return is_alive_in_either(source, entry, code) && (!skips_taken || is_free(search, source, entry, code));
    };
    float largest = elementary::MINUS_INFINITY;
    for (uint32_t i = 0; i < family.size(); i++) {
        const Source source = source_of(family.member(i), family.args->logits);
        for_each_of_both(source, [&](uint32_t entry, uint32_t code) {
            const float logit = source.logits[code];
            const bool nan = elementary::is_nan(logit);
            const float value = scaled(logit, temperature);
            if (!nan && !(value > largest)) return;
            if (nan ? is_alive_in_either(source, entry, code) : counts(source, entry, code)) {
                if (nan) atomicOr(&search.fault, 1u);
                largest = nan ? largest : value;
            }
        });
    }
    largest = block_max(largest, s.sums);
    if (elementary::is_infinite(largest)) return largest;
    float sum = 0.0f;           // of lane threadIdx.x, below 16
    uint32_t before = 0;        // children before the chunk
    for (uint32_t i = 0; i < family.size(); i++) {
        const Source source = source_of(family.member(i), family.args->logits);
        const Merged merged = merged_of(source);
        uint64_t begin = 0;
        while (begin < merged.len()) {
            if ((source.kind & KIND_RUNS) && begin > 0) {
                // A chunk within one run is left behind together with the rest of the run.
                const uint64_t chunk_end = min(begin + THREADS, merged.len());
                const uint32_t from = source.first + merged.split(begin), to = source.first + merged.split(chunk_end);
                if (from > source.first && to - from == chunk_end - begin && source.codes[to - 1] == source.codes[from - 1]) {
                    begin += warp_run_end(source.codes, to, source.end, source.codes[to - 1]) - from;
                    continue;
                }
            }
            const uint64_t at = begin + threadIdx.x;
            bool child = at < merged.len();
            float value = 0.0f;
            if (child) {
                uint32_t entry, code;
                child = merged.child(source, at, entry, code) && counts(source, entry, code);
                if (child) value = elementary::exp(dev::sub_rn(scaled(source.logits[code], temperature), largest));
            }
            uint32_t total;
            const uint32_t rank = block_rank(child, g.ranks, total);
            if (child) g.terms[rank] = value;
            __syncthreads();
            if (threadIdx.x < 16) {
                // Child `before + k` belongs to lane (before + k) % 16.
                for (uint32_t k = (threadIdx.x + 16 - before % 16) % 16; k < total; k += 16) sum = dev::add_rn(sum, g.terms[k]);
            }
            before += total;
            begin += THREADS;
        }
    }
    if (threadIdx.x < 32) {
#pragma unroll
        for (int step = 8; step > 0; step /= 2) sum = dev::add_rn(sum, __shfl_down_sync(dev::FULL_MASK, sum, step));
        if (threadIdx.x == 0) g.value = elementary::log_sum(largest, sum);
    }
    __syncthreads();
    return g.value;
}

DEVICE_INLINE elementary::Noise noise_of(const SidSearch& search, const SidType& type, uint32_t level, uint32_t group) {
    return {make_uint2(search.seed[0], search.seed[1]), make_uint2(search.draw[0], search.draw[1]), elementary::search_domain(type.item_type, level, group)};
}

// A child's log-probability at the temperature plus its noise.
DEVICE_INLINE float perturbed_alone(const Source& s, const elementary::Noise& noise, float temperature, float phi, float drawn_norm, uint32_t entry, uint32_t code) {
    const float log_q = elementary::log_probability(dev::div_rn(s.logits[code], temperature), drawn_norm);
    return dev::add_rn(elementary::add_score(phi, log_q), noise.gumbel_of_child(identity(s, entry, code)));
}

// The largest perturbed score of the family's children that are alive and not taken.
static __device__ __noinline__ float family_largest(const SidStepArgs& a, const SidSlot& slot, uint32_t group, float drawn_norm, RowShared& s) {
    const Family family{&a, &slot};
    const SidSearch& search = *slot.search;
    float largest = elementary::MINUS_INFINITY;
    for (uint32_t i = 0; i < family.size(); i++) {
        const Source source = source_of(family.member(i), family.args->logits);
        const elementary::Noise noise = noise_of(search, source.type(), slot.level_index, group);
        for_each_of_both(source, [&](uint32_t entry, uint32_t code) {
            const float own = perturbed_alone(source, noise, search.temperature, slot.phi, drawn_norm, entry, code);
            if (own > largest && is_alive_in_either(source, entry, code) && is_free(search, source, entry, code)) largest = own;
        });
    }
    return block_max(largest, s.sums);
}

// A child's key by all rules, if its score reaches the floor and it may be chosen.
//
// The condition preserves order: children whose own perturbed score is below one that failed fail too.
DEVICE_INLINE bool general_candidate(const Row& row, uint32_t entry, uint32_t code, uint32_t floor, float& failed, uint64_t& key) {
    const Source& s = row.source;
    const SidSlot& slot = *s.slot;
    SidSearch& search = *slot.search;
    const float logit = s.logits[code];
    const bool nan = elementary::is_nan(logit);
    float score = 0.0f, own = 0.0f;
    if (search.sampled) {
        own = perturbed_alone(s, noise_of(search, s.type(), slot.level_index, row.group), search.temperature, slot.phi, row.drawn_norm, entry, code);
        if (!nan && own < failed) return false;
    } else {
        score = elementary::add_score(slot.score, elementary::log_probability(logit, row.norm));
        if (!nan && elementary::ordered(score) < floor) return false;
    }
    if (!is_alive_in_either(s, entry, code) || !is_free(search, s, entry, code)) return false;
    if (nan) {
        atomicOr(&search.fault, 1u);
        return false;
    }
    if (search.sampled) {
        score = conditioned(slot.perturbed, row.largest, own);
        if (elementary::ordered(score) < floor) {
            failed = own;
            return false;
        }
    }
    // At the first level each code is a class of its own, and earlier groups may have filled it.
    if (search.cap != 0 && slot.level_index == 0 && search.class_counts[s.type().class_base + code] >= search.cap) return false;
    score = charge(search, s.type(), score, code);
    if (elementary::ordered(score) < floor) return false;
    key = key_of(score, slot.parent, code);
    return true;
}

// Scores a row by all rules.
static __device__ __noinline__ void score_general(const SidStepArgs& a, const SidSlot& slot, uint32_t slot_at, uint32_t group, RowShared& s, GeneralShared& g) {
    SidSearch& search = *slot.search;
    if (threadIdx.x == 0) s.floor = search.cap != 0 ? 0 : *const_cast<const volatile uint32_t*>(&search.floor);
    Row row{source_of(slot, a.logits), 0.0f, 0.0f, 0.0f, group};
    const Family family{&a, &slot};
    bool faulty = false;
    if (search.normalizer == NORM_VALID || search.sampled) {
        if (family.known()) {
            // What a score is must not depend on what other groups chose: this sum includes what is taken.
            row.norm = search.normalizer == NORM_VALID ? family_log_sum(a, slot, 0.0f, s, g) : 0.0f;
            if (search.sampled) {
                row.drawn_norm = family_log_sum(a, slot, search.temperature, s, g);
                row.largest = family_largest(a, slot, group, row.drawn_norm, s);
            }
        } else {
            faulty = true;
        }
    }
    if (search.normalizer != NORM_VALID) row.norm = plain_norm(a, slot, s).norm;
    faulty = faulty || elementary::is_nan(row.norm);
    uint32_t count = 0;
    if (faulty) {
        if (threadIdx.x == 0) atomicOr(&search.fault, 1u);
    } else {
        const uint32_t floor = s.floor;
        uint32_t bound = floor;
        count = best_children<true>(s, row.source, slot.room, slot.width, bound, [&](uint32_t entry, uint32_t code, uint32_t floor, float& failed, uint64_t& key) {
            return general_candidate(row, entry, code, floor, failed, key);
        });
        if (threadIdx.x == 0 && bound > floor && search.cap == 0) atomicMax(&search.floor, bound);
    }
    write_row(a, slot, slot_at, s, {row.norm, row.drawn_norm, row.largest, count});
}

}  // namespace sid
