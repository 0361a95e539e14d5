// sid_gather: which rows each codebook product needs, and everything that scoring them needs to know.
//
// One block per head group (type, level). Its candidates are listed by the host, which does not know what the step before chose; those
// whose beam is live and of the group's type are kept, in the order of the list, so that the product's input and the places of its results do not
// depend on timing. Per kept candidate: its row of the plan in `list`, its SidSlot. Per group: a RowGroup with how many there are.
// Nothing of size: 16 bytes read and 112 written per row.
#include "device.cuh"
#include "sid.cuh"

namespace {

constexpr uint32_t GATHER_THREADS = 256;

struct Kept {
    bool kept;
    uint32_t slot_at;
    SidSlot slot;
};

// Adds what the delta has of a node.
DEVICE_INLINE void add_delta(SidSlot& out, const SidLevel* level, uint32_t first, uint32_t end, bool last) {
    if (first >= end) return;
    out.delta = level;
    out.delta_first = first;
    out.delta_end = end;
    // Few rows have a part in a delta: they take the general road, and the plain one stays as narrow as it is.
    if (!(out.kind & KIND_GROUPED)) out.kind |= KIND_GENERAL;
    out.kind |= KIND_DELTA | (level->start == nullptr && !last ? KIND_DELTA_RUNS : 0u);
}

// Looks a candidate up. Whatever the records hold, nothing beyond the buffers is touched.
DEVICE_INLINE bool resolve(const SidGatherArgs& a, const SidCandidate& candidate, const SidHeadGroup& group, uint32_t& slot_at, SidSlot& out) {
    const StepCounts& counts = *a.counts;
    if (candidate.step >= min(counts.sid_steps, a.max_steps) || candidate.row >= a.max_rows) return false;
    const SidStepRecord step = a.steps[candidate.step];
    if (step.search >= a.max_searches || candidate.at >= step.slots) return false;
    SidSearch* const search = a.searches[step.search];
    if (search == nullptr || search->level != step.level || step.level >= search->depth || candidate.place >= search->type_count) return false;
    const uint64_t at = uint64_t(step.slot_first) + candidate.at;
    const uint64_t keys = uint64_t(step.keys_first) + uint64_t(candidate.at) * step.room;
    const uint32_t width = search->widths[step.level] / search->groups;
    if (at >= a.max_slots || keys + step.room > a.max_keys || step.room < width || step.room > ROW_ROOM) return false;
    slot_at = static_cast<uint32_t>(at);
    const SidType& type = search->types[candidate.place];
    if (step.level >= type.depth) return false;
    const SidLevel& level = type.levels[step.level];
    if (level.codebook != group.codebook) return false;
    const bool first = step.level == 0;
    const bool last = step.level + 1 == type.depth;
    const bool general = search->normalizer == NORM_VALID || search->sampled;
    out = {};
    out.search = search;
    out.type = &type;
    out.level = &level;
    out.epoch = step.epoch;
    out.level_index = step.level;
    out.place = candidate.place;
    out.parent = candidate.place;
    out.end = level.entries;
    out.width = width;
    out.keys_at = static_cast<uint32_t>(keys);
    out.room = step.room;
    out.siblings = first && search->type_count > 1 ? step.slot_first : NONE;
    out.kind = (level.start == nullptr && !last ? KIND_RUNS : 0u) | (search->groups > 1 ? KIND_GROUPED : general ? KIND_GENERAL : 0u) |
               (type.mask.base != MASK_ALL || type.mask.dead_len > 0 ? KIND_MASKED : 0u);
    out.codebook = level.codebook;
    out.norm_at = NONE;
    if (search->normalizer == NORM_VOCABULARY) {
        const uint64_t norm_at = uint64_t(step.norm_first) + (first ? 0 : candidate.at);
        if (norm_at >= a.max_norms) return false;
        out.norm_at = static_cast<uint32_t>(norm_at);
    }
    const SidLevel* const delta = type.delta != nullptr ? type.delta + step.level : nullptr;
    if (first) {
        if (delta != nullptr) add_delta(out, delta, 0, delta->entries, last);
        return candidate.at == candidate.place && uint64_t(step.slot_first) + search->type_count <= a.max_slots;
    }
    if (candidate.at >= search->view.live) return false;
    const uint32_t place = search->rows[candidate.at];
    const SidEntry& entry = search->lists[search->parity][place];
    if (entry.place != candidate.place) return false;
    out.parent = place % search->group_room;
    out.first = entry.first;
    out.end = entry.end;
    out.score = entry.score;
    out.phi = entry.phi;
    out.perturbed = entry.perturbed;
    if (delta != nullptr) add_delta(out, delta, entry.delta_first, entry.delta_end, last);
    return true;
}

__device__ void gather_body(const SidGatherArgs& a) {
    SHARED(uint32_t, sums, GATHER_THREADS / 32);
    dev::dependency_wait();
    dev::dependency_trigger();
    const StepCounts& counts = *a.counts;
    // A launch may have more blocks than this plan has groups.
    SidHeadGroup group{};
    if (blockIdx.x < a.max_groups && counts.sid_steps > 0 && a.groups[blockIdx.x].epoch == a.steps[0].epoch) group = a.groups[blockIdx.x];
    const bool fits = uint64_t(group.candidate_first) + group.candidates <= min(counts.candidates, a.max_candidates) &&
                      uint64_t(group.list_first) + group.rows <= a.max_list && group.out <= a.max_logits && group.out % 4 == 0 &&
                      uint64_t(group.rows) * group.codebook <= a.max_logits - group.out;
    if (!fits) group = {};
    uint32_t kept = 0;
    for (uint32_t first = 0; first < group.candidates; first += GATHER_THREADS) {
        SidSlot slot;
        SidCandidate candidate{};
        uint32_t slot_at = 0;
        bool keeps = false;
        if (first + threadIdx.x < group.candidates) {
            candidate = a.candidates[group.candidate_first + first + threadIdx.x];
            keeps = resolve(a, candidate, group, slot_at, slot);
        }
        uint32_t total;
        const uint32_t at = kept + sid::block_rank(keeps, sums, total);
        if (keeps && at < group.rows) {
            slot.logits = group.out + uint64_t(at) * group.codebook;
            a.list[group.list_first + at] = candidate.row;
            a.slots[slot_at] = slot;
        }
        kept = min(kept + total, group.rows);
    }
    // Places that stay empty name a row that exists.
    for (uint32_t at = kept + threadIdx.x; at < group.rows; at += GATHER_THREADS) a.list[group.list_first + at] = 0;
    if (threadIdx.x == 0 && blockIdx.x < a.max_groups) a.row_groups[blockIdx.x] = {group.list_first, kept, group.out};
}

}  // namespace

KERNEL(sid_gather, SidGatherArgs, 256, 2) { gather_body(a); }
