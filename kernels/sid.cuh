// Records of the SID step: what the host uploads per catalog, per search and per plan, and what lives on the device between steps.
// src/device/cuda/sid/records.rs mirrors every one of them.
//
// A search is one block of memory: its BeamView, its parameters, two lists of paths that take turns, and the links (chosen codes) that
// paths consist of. What identifies a candidate of a choice is one 64-bit key, score above tie rank:
//   ordered(score) << 32 | ~(place of the parent in its list << 16 | code)
// Keys of one choice are distinct, so the best W are one set and have one order, whichever thread finds them when.
#pragma once
#include "args.cuh"
#include "elementary.cuh"

// ------------------------------------------------------------------------------------------------------- per catalog, per search

// One level of a type's trie (src/catalog/index.rs) and the tokens of its codes.
struct SidLevel {
    const uint16_t* codes;      // [entries], ascending within a node
    const uint32_t* first;      // [entries + 1] first entry of an entry's children; null: a column, one entry per SID
    const uint32_t* start;      // [entries + 1] first SID below an entry; null: a column
    const uint32_t* tokens;     // [codebook]; null: they follow first_token
    uint32_t first_token;
    uint32_t codebook;
    uint32_t entries;
    uint32_t reserved;
};
ARGS_SIZE(SidLevel, 48);

constexpr uint32_t MASK_ALL = 0, MASK_BITS = 1, MASK_LIST = 2;

// What of a trie is alive: a base less the dead (src/catalog/mask.rs).
struct SidMask {
    const uint64_t* words;      // MASK_BITS: [ceil(sids / 64)]
    const uint32_t* before;     // MASK_BITS: set bits before each 8 words
    const uint32_t* list;       // MASK_LIST: [list_len], sorted
    const uint32_t* dead;       // [dead_len], sorted, all in the base
    uint32_t list_len;
    uint32_t dead_len;
    uint32_t base;              // MASK_*
    uint32_t reserved;
};
ARGS_SIZE(SidMask, 48);

// A requested type of a search. Beside the snapshot's trie there may be a delta's, of the same depth and codebooks: a node is then a pair, and a code
// that both have is one child, alive if it is in either. SIDs that only the delta has are numbered behind the snapshot's.
struct SidType {
    const SidLevel* levels;     // [depth]
    const SidLevel* delta;      // [depth]; null: there is none
    SidMask mask;
    SidMask delta_mask;
    uint32_t depth;
    uint32_t item_type;
    uint32_t class_base;        // class of code 0 of the first level
    uint32_t uses_base;         // place of code 0 in SidSearch.uses
    uint32_t sids;              // of the snapshot
    uint32_t reserved[3];
};
ARGS_SIZE(SidType, 144);

// A path of a list.
struct SidEntry {
    uint32_t link;              // its last link
    uint32_t row;               // live row; NONE: the path is finished
    uint32_t place;             // of its type among the requested ones
    uint32_t class_id;          // type and first code
    uint32_t first;             // its node: an interval of entries of the next level; the SID of a finished path
    uint32_t end;
    float score;
    float phi;                  // drawn paths: log-probability at the temperature, and the same, perturbed
    float perturbed;
    uint32_t delta_first;       // its node in the delta
    uint32_t delta_end;
    uint32_t reserved;
};
ARGS_SIZE(SidEntry, 48);

struct SidLink {
    uint32_t parent;            // NONE: the first code
    uint32_t row;               // row at which the code was the input of the next step
    float log_probability;
    uint32_t code;
};
ARGS_SIZE(SidLink, 16);

constexpr uint32_t NORM_CODEBOOK = 0, NORM_VOCABULARY = 1, NORM_VALID = 2;
constexpr uint32_t TAKEN_ROOM = 2048;      // twice MAX_WIDTH: a hash table at most half full
constexpr uint32_t MAX_TYPES = 1024;       // of one search
constexpr uint32_t ROW_ROOM = 2240;        // 2 MAX_WIDTH + 192

struct SidSearch {
    BeamView view;
    const SidType* types;       // [type_count]
    SidEntry* lists[2];         // [groups][group_room]
    SidLink* links;             // [depth][groups][group_room]
    uint32_t* rows;             // [width] place of each live row in the present list
    uint32_t* lens[2];          // [groups]
    uint32_t* group_rows;       // [groups] one past the last row of a group
    uint32_t* uses;             // uses of each code at this level by earlier groups; null: nothing is charged
    uint32_t* class_counts;     // [classes] paths of each class chosen at this level by earlier groups; null: no cap
    unsigned long long* taken;  // [TAKEN_ROOM] (place << 32 | SID) + 1 of SIDs that earlier groups finished at this level; null: one group
    uint32_t level;             // chosen next
    uint32_t depth;             // of the deepest type
    uint32_t fault;
    uint32_t parity;            // of the present list
    uint32_t type_count;
    uint32_t normalizer;        // NORM_*
    uint32_t groups;
    uint32_t group_room;        // the largest width / groups
    uint32_t cap;               // most paths of a class; 0: none
    uint32_t sampled;
    float penalty;
    float temperature;
    uint32_t seed[2];           // low word first
    uint32_t draw[2];
    uint32_t floor;             // ordered score below which nothing can be among the best of this level
    uint32_t reserved;
    uint32_t widths[MAX_LEVELS];
};
ARGS_SIZE(SidSearch, sizeof(BeamView) + 11 * 8 + 18 * 4 + 64);

// ------------------------------------------------------------------------------------------------------------ per plan

// A search to advance by one level. Its slots are what is scored: at the first level one per requested type, later one per row.
struct SidStepRecord {
    uint32_t search;            // index into the table of searches
    uint32_t level;
    uint32_t slot_first;
    uint32_t slots;
    uint32_t keys_first;        // its part of the survivors: `room` per slot
    uint32_t room;
    uint32_t norm_first;        // first vocabulary normaliser, one per row; NONE if it has another one
    uint32_t epoch;             // differs from plan to plan
};
ARGS_SIZE(SidStepRecord, 32);

// A row that may need the codebook of a head group: it does if it is live and of the type.
struct SidCandidate {
    uint32_t step;
    uint32_t at;                // slot of the step
    uint32_t place;             // of the type among the requested ones
    uint32_t row;               // of the plan
};
ARGS_SIZE(SidCandidate, 16);

// Candidates of one codebook; their kept rows become rows [list_first, list_first + kept) of the product's input.
struct SidHeadGroup {
    uint32_t candidate_first;
    uint32_t candidates;
    uint32_t list_first;
    uint32_t rows;              // most that can be kept
    uint64_t out;               // first logit, a multiple of 4
    uint32_t codebook;
    uint32_t epoch;             // as the steps'
};
ARGS_SIZE(SidHeadGroup, 32);

// ------------------------------------------------------------------------------------------------- between the kernels of a step

// Everything that scoring a row needs, resolved by sid_gather, so that the scoring kernel waits for memory once before it reads logits.
struct SidSlot {
    uint64_t logits;            // of code 0
    SidSearch* search;
    const SidType* type;
    const SidLevel* level;
    uint32_t epoch;             // of the plan that it was resolved for
    uint32_t level_index;
    uint32_t place;
    uint32_t parent;            // place of the parent in its list; at the first level the type's
    uint32_t first;             // its node
    uint32_t end;
    float score;
    float phi;
    float perturbed;
    uint32_t width;             // paths that its group keeps
    uint32_t keys_at;           // its part of the survivors
    uint32_t room;
    uint32_t norm_at;           // vocabulary normaliser, or NONE
    uint32_t siblings;          // first slot of the step at the first level of several types, else NONE
    uint32_t kind;              // KIND_*
    uint32_t codebook;
    const SidLevel* delta;      // KIND_DELTA: its level, and its node there, which has children
    uint32_t delta_first;
    uint32_t delta_end;
};
ARGS_SIZE(SidSlot, 112);

constexpr uint32_t KIND_RUNS = 1;       // children are runs of equal codes, else every entry is one
constexpr uint32_t KIND_GENERAL = 2;    // normalised over alive children, or drawn
constexpr uint32_t KIND_GROUPED = 4;    // scored group after group by sid_select_general
constexpr uint32_t KIND_MASKED = 8;     // liveness must be asked
constexpr uint32_t KIND_DELTA = 16;     // there are children in the delta
constexpr uint32_t KIND_DELTA_RUNS = 32;
constexpr uint32_t BESIDE = NONE - 1;   // entry of a child that only the delta has; no trie has that many

struct SidScore {
    float norm;                 // logarithm of the normaliser
    float drawn_norm;           // of the one that draws
    float largest;              // largest perturbed score of the children
    uint32_t count;             // survivors
};
ARGS_SIZE(SidScore, 16);

struct SidResult {
    uint32_t live;
    uint32_t fault;
};

// ------------------------------------------------------------------------------------------------------------- arguments

struct SidGatherArgs {
    const StepCounts* counts;
    const SidStepRecord* steps;
    const SidCandidate* candidates;
    const SidHeadGroup* groups;
    SidSearch* const* searches;     // [max_searches], null where there is none
    RowGroup* row_groups;           // [groups]
    uint32_t* list;                 // [max_list] rows of the plan
    SidSlot* slots;                 // [max_slots]
    uint32_t max_steps;
    uint32_t max_candidates;
    uint32_t max_groups;
    uint32_t max_searches;
    uint32_t max_list;
    uint32_t max_slots;
    uint32_t max_rows;
    uint32_t max_norms;
    uint64_t max_keys;
    uint64_t max_logits;
};
ARGS_SIZE(SidGatherArgs, 112);

struct SidStepArgs {
    const StepCounts* counts;
    const SidStepRecord* steps;
    SidSearch* const* searches;
    const SidSlot* slots;
    const float* logits;
    const float* norms;             // of the vocabulary
    uint64_t* keys;                 // [max_keys]
    uint32_t* entries;              // [max_keys]
    SidScore* scores;               // [max_slots]
    SidResult* results;             // [max_steps]
    uint32_t max_steps;
    uint32_t max_searches;
    uint32_t max_slots;
    uint32_t reserved;
    uint64_t max_keys;
    uint64_t reserved2;
};
ARGS_SIZE(SidStepArgs, 112);

struct SidNormArgs {
    const RowGroup* group;          // rows counts; they begin at the first row of logits
    const float* logits;            // [rows, columns]
    float* norms;                   // [rows]
    uint32_t columns;
    uint32_t max_rows;
};
ARGS_SIZE(SidNormArgs, 32);

namespace sid {

// Threads of a block of the kernels that score and choose.
#ifndef SID_THREADS
#define SID_THREADS 512
#endif
constexpr uint32_t THREADS = SID_THREADS;
constexpr uint32_t WARPS = THREADS / 32;

DEVICE_INLINE uint64_t key_of(float score, uint32_t parent, uint32_t code) {
    return uint64_t(elementary::ordered(score)) << 32 | static_cast<uint32_t>(~(parent << 16 | code));
}
DEVICE_INLINE uint32_t score_bits(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
DEVICE_INLINE uint32_t parent_of(uint64_t key) { return ~static_cast<uint32_t>(key) >> 16; }
DEVICE_INLINE uint32_t code_of(uint64_t key) { return ~static_cast<uint32_t>(key) & 0xffffu; }

// Places of a block's threads that hold `flag`, in thread order: the number before this one. `total` receives the number of all.
// Two barriers, so that calls may follow each other. `sums` is [WARPS].
DEVICE_INLINE uint32_t block_rank(bool flag, uint32_t* sums, uint32_t& total) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t votes = __ballot_sync(dev::FULL_MASK, flag);
    if (lane == 0) sums[warp] = __popc(votes);
    __syncthreads();
    uint32_t before = 0;
    total = 0;
    for (uint32_t w = 0; w < blockDim.x / 32; w++) {
        before += w < warp ? sums[w] : 0;
        total += sums[w];
    }
    __syncthreads();
    return before + __popc(votes & ((1u << lane) - 1));
}

}  // namespace sid
