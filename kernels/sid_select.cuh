// sid_select, sid_select_general: one block per step makes the best of the rows' survivors and of the finished paths the next list of its search.
//
// The best W by key are one set (sid.cuh), so how the survivors came to lie where they do does not matter. Some thousand keys of 8 bytes
// are read from the level-2 cache; usually one pass bounds them to a small multiple of W (sid_best.cuh), which is sorted. Then thread i
// makes the i-th path. When no path is live, the levels that remain only cut the list to their widths and are run at once.
//
// The general kernel takes the searches with diversity groups or a cap. Groups choose one after the other, so it also scores their rows,
// row after row: exact, and slower by the number of rows. A cap admits of each class (type and first code) its best `cap`: keys
// are taken in chunks of W in descending order, classes that are full left out, until W are admitted or none is left.
#pragma once
#include "sid_general.cuh"

namespace {

using namespace sid;

constexpr uint32_t ROOM = 2048;             // keys sorted at once, at least MAX_WIDTH
constexpr uint32_t STAYS = NONE;            // ref of a finished path that keeps its place

// Shared memory of the choice itself.
struct SelectShared {
    uint64_t key[MAX_WIDTH];        // chosen, best first
    uint32_t ref[MAX_WIDTH];
    uint16_t parent_row[MAX_WIDTH]; // per new live row
    uint32_t ranks[WARPS];
    uint32_t survivors;
};

// One choice of one group.
struct Choice {
    const SidStepArgs* args;
    SidSearch* search;
    SidStepRecord step;
    uint32_t level;
    uint32_t group;
    uint32_t width;
    uint32_t row_first;     // its rows
    uint32_t row_end;

    DEVICE_INLINE SidEntry* list() const { return search->lists[search->parity] + size_t(group) * search->group_room; }
    DEVICE_INLINE uint32_t len() const { return level == 0 ? 0 : search->lens[search->parity][group]; }
    // Type and first code of a candidate.
    DEVICE_INLINE uint32_t class_of(uint64_t key) const {
        const uint32_t parent = parent_of(key);
        return level == 0 ? search->types[parent].class_base + code_of(key) : list()[parent].class_id;
    }
};

// Calls visit(key, ref) for the group's candidates whose score reaches the floor.
template <bool GENERAL, class Visit>
DEVICE_INLINE void for_each_candidate(const Choice& c, uint64_t below, const uint32_t& floor, Visit visit) {
    const auto offer = [&](uint64_t key, uint32_t ref) {
        if (score_bits(key) < floor) return;
        if constexpr (GENERAL) {
            if (key >= below) return;
            if (c.search->cap != 0 && c.search->class_counts[c.class_of(key)] >= c.search->cap) return;
        }
        visit(key, ref);
    };
    const SidEntry* const list = c.list();
    for (uint32_t at = threadIdx.x; at < c.len(); at += THREADS) {
        const SidEntry& entry = list[at];
        if (entry.row == NONE) offer(key_of(c.search->sampled ? entry.perturbed : entry.score, at, 0), STAYS);
    }
    for (uint32_t row = c.row_first + threadIdx.x / 32; row < c.row_end; row += WARPS) {
        const SidSlot& slot = c.args->slots[c.step.slot_first + row];
        const uint32_t count = min(c.args->scores[c.step.slot_first + row].count, c.step.room);
        const uint32_t first = row * c.step.room;
        for (uint32_t i = threadIdx.x % 32; i < count; i += 32) {
            const uint64_t key = c.args->keys[size_t(c.step.keys_first) + first + i];
            // Steps whose parts overlap would hand each other keys that lead nowhere.
            if (parent_of(key) == slot.parent && code_of(key) < slot.codebook) offer(key, first + i);
        }
    }
}

// Gathers the best `width` candidates below a key and sorts them; returns how many there are.
template <bool GENERAL, uint32_t N>
DEVICE_INLINE uint32_t gather_best(const Choice& c, Best<N>& best, SelectShared& s, uint64_t below) {
    if (threadIdx.x == 0) s.survivors = 0;
    __syncthreads();
    uint32_t own = 0;
    for (uint32_t row = c.row_first + threadIdx.x; row < c.row_end; row += THREADS) own += c.args->scores[c.step.slot_first + row].count;
    if (own > 0) atomicAdd(&s.survivors, own);
    __syncthreads();
    // Sorting some hundred keys costs less than another pass over them.
    const bool many = s.survivors + c.len() > max(4 * c.width, 256u);
    uint32_t bound = 0;
    const uint32_t count = best_of(best, ROOM, c.width, many, bound, [&](uint32_t& floor, auto visit) { for_each_candidate<GENERAL>(c, below, floor, visit); });
    sort_descending(best, count);
    return min(count, c.width);
}

// Chooses the group's paths; returns how many.
template <bool GENERAL, uint32_t N>
DEVICE_INLINE uint32_t choose(const Choice& c, Best<N>& best, SelectShared& s) {
    if (!GENERAL || c.search->cap == 0) {
        const uint32_t count = gather_best<GENERAL>(c, best, s, ~0ull);
        for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
            s.key[i] = best.key[i];
            s.ref[i] = best.ref[i];
        }
        return count;
    }
    uint32_t chosen = 0;
    uint64_t below = ~0ull;
    while (chosen < c.width) {
        const uint32_t count = gather_best<GENERAL>(c, best, s, below);
        if (count == 0) break;
        below = best.key[count - 1];
        for (uint32_t first = 0; first < count; first += THREADS) {
            const uint32_t i = first + threadIdx.x;
            bool admitted = false;
            uint32_t own = 0;
            if (i < count) {
                // In descending order a class takes its places first come, first served. Counts of this chunk are added below.
                own = c.class_of(best.key[i]);
                uint32_t taken = c.search->class_counts[own];
                for (uint32_t j = first; j < i; j++) taken += c.class_of(best.key[j]) == own;
                admitted = taken < c.search->cap;
            }
            uint32_t total;
            const uint32_t at = chosen + block_rank(admitted, s.ranks, total);
            if (admitted && at < c.width) {
                s.key[at] = best.key[i];
                s.ref[at] = best.ref[i];
                atomicAdd(&c.search->class_counts[own], 1u);
            }
            chosen = min(chosen + total, c.width);
            __syncthreads();
        }
        if (count < c.width) break;
    }
    return chosen;
}

DEVICE_INLINE uint32_t token_of(const SidLevel& level, uint32_t code) { return level.tokens != nullptr ? level.tokens[code] : level.first_token + code; }

// The node that an entry leads to, below a node that ends at `end`.
DEVICE_INLINE void child_node(const SidLevel& level, uint32_t runs, uint32_t entry, uint32_t end, uint32_t code, uint32_t& first_child, uint32_t& end_child) {
    if (level.first != nullptr) {
        first_child = level.first[entry];
        end_child = level.first[entry + 1];
    } else {
        first_child = entry;
        end_child = runs ? run_end(level.codes, entry + 1, end, code) : entry + 1;
    }
}

// The path that a chosen candidate leads to, but for its live row, which is counted by the caller; sets the row of the parent and the link.
DEVICE_INLINE SidEntry follow(const Choice& c, uint64_t key, uint32_t ref, uint32_t link_at, uint32_t& parent_row, SidLink& link) {
    SidSearch& search = *c.search;
    const uint32_t parent = parent_of(key), code = code_of(key);
    if (ref == STAYS) return c.list()[parent];
    SidEntry from{NONE, 0, parent, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0, 0, 0};
    if (c.level > 0) from = c.list()[parent];
    const uint32_t slot_at = c.step.slot_first + ref / c.step.room;
    const SidSlot& slot = c.args->slots[slot_at];
    const SidScore score = c.args->scores[slot_at];
    const SidType& type = *slot.type;
    const SidLevel& level = *slot.level;
    const uint32_t found = c.args->entries[size_t(c.step.keys_first) + ref];
    const bool in_base = found - slot.first < slot.end - slot.first;
    // Only a pair has children that are not in the snapshot; steps whose parts overlap name entries of other nodes.
    const uint32_t entry = in_base ? found : (slot.kind & KIND_DELTA) || slot.first >= slot.end ? BESIDE : slot.first;
    const float logit = c.args->logits[slot.logits + code];
    const float log_probability = elementary::log_probability(logit, score.norm);
    SidEntry next = from;
    next.link = link_at;
    next.row = c.level + 1 < type.depth ? 0 : NONE;
    next.place = slot.place;
    next.class_id = c.level == 0 ? type.class_base + code : from.class_id;
    next.delta_first = next.delta_end = 0;
    if (slot.kind & KIND_DELTA) {
        const uint32_t beside = entry_of(slot.delta->codes, slot.delta_first, slot.delta_end, code);
        if (beside != NONE) child_node(*slot.delta, slot.kind & KIND_DELTA_RUNS, beside, slot.delta_end, code, next.delta_first, next.delta_end);
    }
    if (entry != BESIDE) {
        child_node(level, slot.kind & KIND_RUNS, entry, slot.end, code, next.first, next.end);
    } else {
        // A whole SID that only the delta has is numbered behind the snapshot's.
        next.first = next.row == NONE ? type.sids + next.delta_first : 0;
        next.end = next.row == NONE ? type.sids + next.delta_end : 0;
    }
    next.score = elementary::add_score(from.score, log_probability);
    if (search.sampled) {
        const float log_q = elementary::log_probability(dev::div_rn(logit, search.temperature), score.drawn_norm);
        next.phi = elementary::add_score(from.phi, log_q);
        // What is charged counts for the choice alone.
        next.perturbed = elementary::from_ordered(score_bits(key));
        if (search.uses != nullptr) {
            const float own = perturbed_alone(source_of(slot, c.args->logits), noise_of(search, type, c.level, c.group), search.temperature, from.phi, score.drawn_norm, entry, code);
            next.perturbed = conditioned(from.perturbed, score.largest, own);
        }
    }
    parent_row = from.row;
    link = {from.link, NONE, log_probability, code};
    return next;
}

// Writes the group's chosen paths as its next list; returns the number of live rows so far.
DEVICE_INLINE uint32_t keep(const Choice& c, SelectShared& s, uint32_t count, uint32_t live) {
    SidSearch& search = *c.search;
    SidEntry* const next = search.lists[search.parity ^ 1] + size_t(c.group) * search.group_room;
    for (uint32_t first = 0; first < count; first += THREADS) {
        const uint32_t i = first + threadIdx.x;
        SidEntry entry{};
        SidLink link;
        uint32_t parent_row = 0, ref = STAYS;
        const uint32_t link_at = (c.level * search.groups + c.group) * search.group_room + i;
        if (i < count) {
            ref = s.ref[i];
            entry = follow(c, s.key[i], ref, link_at, parent_row, link);
        }
        const bool lives = ref != STAYS && entry.row != NONE;
        uint32_t total;
        const uint32_t row = live + block_rank(lives, s.ranks, total);
        if (lives) {
            entry.row = row;
            link.row = row;
            search.rows[row] = c.group * search.group_room + i;
            search.view.token[row] = token_of(search.types[entry.place].levels[c.level], link.code);
            s.parent_row[row] = static_cast<uint16_t>(parent_row);
        }
        if (i < count) {
            next[i] = entry;
            if (ref != STAYS) search.links[link_at] = link;
        }
        live += total;
    }
    if (threadIdx.x == 0) {
        search.lens[search.parity ^ 1][c.group] = count;
        search.group_rows[c.group] = live;
    }
    return live;
}

// Tells later groups what this one has chosen.
DEVICE_INLINE void tell_rivals(const Choice& c, const SelectShared& s, uint32_t count) {
    SidSearch& search = *c.search;
    const SidEntry* const next = search.lists[search.parity ^ 1] + size_t(c.group) * search.group_room;
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        if (s.ref[i] == STAYS) continue;
        if (search.uses != nullptr) atomicAdd(&search.uses[search.types[next[i].place].uses_base + code_of(s.key[i])], 1u);
        if (next[i].row != NONE) continue;
        const unsigned long long key = taken_key(next[i].place, next[i].first);
        uint32_t at = taken_slot(key);
        while (atomicCAS(&search.taken[at], 0ull, key) != 0) at = (at + 1) % TAKEN_ROOM;
    }
}

// Clears what groups told each other at this level.
DEVICE_INLINE void forget_rivals(SidSearch& search) {
    for (uint32_t group = 0; group < search.groups; group++) {
        const SidEntry* const next = search.lists[search.parity ^ 1] + size_t(group) * search.group_room;
        for (uint32_t i = threadIdx.x; i < search.lens[search.parity ^ 1][group]; i += THREADS) {
            if (search.uses != nullptr) search.uses[search.types[next[i].place].uses_base + search.links[next[i].link].code] = 0;
            if (search.cap != 0) search.class_counts[next[i].class_id] = 0;
        }
    }
    if (search.taken != nullptr) {
        for (uint32_t at = threadIdx.x; at < TAKEN_ROOM; at += THREADS) search.taken[at] = 0;
    }
}

// Rewrites the view's table of ancestors for the new live rows.
DEVICE_INLINE void follow_ancestors(SidSearch& search, const SelectShared& s, uint32_t level, uint32_t live) {
    for (uint32_t l = 0; l < level; l++) {
        uint16_t ancestor[MAX_WIDTH / THREADS];
#pragma unroll
        for (uint32_t i = 0; i < MAX_WIDTH / THREADS; i++) {
            const uint32_t row = threadIdx.x + i * THREADS;
            ancestor[i] = row < live ? search.view.ancestor[l][s.parent_row[row]] : 0;
        }
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < MAX_WIDTH / THREADS; i++) {
            const uint32_t row = threadIdx.x + i * THREADS;
            if (row < live) search.view.ancestor[l][row] = ancestor[i];
        }
    }
    for (uint32_t row = threadIdx.x; row < live; row += THREADS) search.view.ancestor[level][row] = static_cast<uint16_t>(row);
}

// Whether every row of the step was scored for this plan.
DEVICE_INLINE bool rows_are_there(const SidStepArgs& a, const SidSearch& search, const SidStepRecord& step, uint32_t rows) {
    bool there = rows <= step.slots && uint64_t(step.slot_first) + step.slots <= a.max_slots && step.room <= ROW_ROOM &&
                 step.room >= search.widths[step.level] / search.groups && uint64_t(step.keys_first) + uint64_t(step.slots) * step.room <= a.max_keys;
    if (!there) return false;
    for (uint32_t row = threadIdx.x; row < rows; row += THREADS) {
        const SidSlot& slot = a.slots[step.slot_first + row];
        there &= step.epoch != 0 && slot.epoch == step.epoch && slot.search == &search && slot.level_index == step.level;
    }
    return there;
}

// Ends a search that holds a NaN.
DEVICE_INLINE void fail(SidSearch& search) {
    if (threadIdx.x != 0) return;
    search.fault = 1;
    search.level = search.depth;
    search.view.live = 0;
    for (uint32_t group = 0; group < search.groups; group++) search.lens[search.parity][group] = 0;
}

template <bool GENERAL, uint32_t N>
DEVICE_INLINE void advance(const SidStepArgs& a, SidSearch& search, const SidStepRecord& step, Best<N>& best, SelectShared& s, RowShared* rs, GeneralShared* gs) {
    uint32_t level = step.level;
    uint32_t rows = level == 0 ? search.type_count : search.view.live;
    if (__syncthreads_or(search.fault != 0 || !rows_are_there(a, search, step, rows))) {
        fail(search);
        return;
    }
    uint32_t live = 0;
    for (;;) {
        live = 0;
        uint32_t row_first = 0;
        for (uint32_t group = 0; group < search.groups; group++) {
            const uint32_t row_end = rows == 0 || level == 0 ? rows : search.group_rows[group];
            if (level == 0) row_first = 0;
            const Choice choice{&a, &search, step, level, group, search.widths[level] / search.groups, row_first, row_end};
            if constexpr (GENERAL) {
                if (search.groups > 1) {
                    if (threadIdx.x == 0) search.floor = 0;
                    __syncthreads();
                    for (uint32_t row = row_first; row < row_end; row++) {
                        const uint32_t slot_at = step.slot_first + row;
                        score_general(a, a.slots[slot_at], slot_at, group, *rs, *gs);
                        __syncthreads();
                    }
                    if (__syncthreads_or(search.fault != 0)) {
                        fail(search);
                        return;
                    }
                }
            }
            const uint32_t count = choose<GENERAL>(choice, best, s);
            live = keep(choice, s, count, live);
            if constexpr (GENERAL) {
                if (search.groups > 1) tell_rivals(choice, s, count);
            }
            row_first = row_end;
            __syncthreads();
        }
        follow_ancestors(search, s, level, live);
        if constexpr (GENERAL) {
            forget_rivals(search);
            __syncthreads();
        }
        level++;
        if (threadIdx.x == 0) search.parity ^= 1;
        if (live > 0 || level == search.depth) break;
        rows = 0;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        search.level = level;
        search.floor = 0;
        search.view.live = live;
    }
}

template <bool GENERAL, uint32_t N>
DEVICE_INLINE void select(const SidStepArgs& a, Best<N>& best, SelectShared& s, RowShared* rs, GeneralShared* gs) {
    dev::dependency_wait();
    dev::dependency_trigger();
    if (blockIdx.x >= min(a.counts->sid_steps, a.max_steps)) return;
    const SidStepRecord step = a.steps[blockIdx.x];
    SidSearch* const search = step.search < a.max_searches ? a.searches[step.search] : nullptr;
    if (search == nullptr) {
        if (!GENERAL && threadIdx.x == 0) a.results[blockIdx.x] = {0, 1};
        return;
    }
    if ((search->groups > 1 || search->cap != 0) != GENERAL) return;
    // A search that has ended stays as it is.
    if (search->level == step.level && step.level < search->depth) advance<GENERAL>(a, *search, step, best, s, rs, gs);
    if (threadIdx.x == 0) a.results[blockIdx.x] = {search->view.live, search->fault};
}

[[maybe_unused]] __device__ void select_body(const SidStepArgs& a) {
    SHARED(Best<ROOM>, best, 1);
    SHARED(SelectShared, shared, 1);
    select<false>(a, best[0], shared[0], nullptr, nullptr);
}

[[maybe_unused]] __device__ void select_general_body(const SidStepArgs& a) {
    SHARED(RowShared, row, 1);
    SHARED(SelectShared, shared, 1);
    SHARED(GeneralShared, general, 1);
    select<true>(a, row[0].best, shared[0], row, general);
}

}  // namespace
