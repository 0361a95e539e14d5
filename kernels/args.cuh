// Argument structs of the kernels and the records of the plan buffer; src/device/cuda/args.rs mirrors every one of them.
//
// What a captured graph freezes (addresses, model sizes, bucket bounds) travels in the argument structs, by value. What changes from step
// to step lies in the plan buffer, filled by one copy: arrays of the records below, whose lengths are in StepCounts.
//
// Every struct is a multiple of 16 bytes with no implicit padding. Addresses are device addresses.
#pragma once
#include <stdint.h>

#ifdef __CUDACC__
#include <vector_types.h>
#else
#include "host/runtime.h"
#endif

#define ARGS_SIZE(type, bytes) static_assert(sizeof(type) == bytes && alignof(type) <= 16, "src/device/cuda/args.rs mirrors " #type)

// ---------------------------------------------------------------------------------------------------------------- bounds

constexpr uint32_t BLOCK_TOKENS = 16;   // tokens of a cache block
constexpr uint32_t MAX_WIDTH = 1024;    // beams of a search
constexpr uint32_t MAX_LEVELS = 16;     // levels of a SID
constexpr uint32_t NONE = 0xffffffffu;

// A matrix in global memory as the copy engine sees it; made by the driver, and part of an argument struct.
struct alignas(64) TensorMap {
    uint64_t words[16];
};
static_assert(sizeof(TensorMap) == 128, "src/device/cuda/driver.rs mirrors TensorMap");

// ---------------------------------------------------------------------------------------------------- records of the plan

// Lengths of the plan's arrays, first in the plan buffer.
struct StepCounts {
    uint32_t rows;
    uint32_t segments;
    uint32_t narrow_items;   // attention tiles of 16 packed queries
    uint32_t wide_items;     // attention tiles of 64 or 128 packed queries
    uint32_t text_rows;
    uint32_t sid_steps;
    uint32_t candidates;     // rows offered to the codebook products
    uint32_t blocks;         // entries of the block tables
};
ARGS_SIZE(StepCounts, 32);

constexpr uint32_t SOURCE_TOKEN = 0, SOURCE_SOFT = 1, SOURCE_BEAM = 2;

// One row of the batch.
struct RowInfo {
    uint32_t source;     // SOURCE_*
    uint32_t value;      // token id; index of the soft token; beam of the row's segment
    uint32_t position;
    uint32_t slot;       // cache slot that receives key and value: block * BLOCK_TOKENS + place
};
ARGS_SIZE(RowInfo, 16);

// A run of rows that a product works on: rows [first, first + rows) of its input, whose results begin at element `out` of its output.
struct RowGroup {
    uint32_t first;
    uint32_t rows;
    uint64_t out;
};
ARGS_SIZE(RowGroup, 16);

// What the other kernels need to know of a search; written by the SID step.
struct BeamView {
    uint32_t live;                                // live beams: rows of the next segment that count
    uint32_t reserved[3];
    uint32_t token[MAX_WIDTH];                    // input token of each live beam
    uint16_t ancestor[MAX_LEVELS][MAX_WIDTH];     // [level][beam]: place in the beam of `level` of the ancestor of a live beam; at the beam's own level itself
};
ARGS_SIZE(BeamView, 16 + 4 * 1024 + 2 * 16 * 1024);

constexpr uint32_t SEGMENT_CAUSAL = 0, SEGMENT_BEAM = 1;

// Contiguous rows that share a context of cached keys (ops.rs, Segment).
//
// Attention packs the queries of a key/value head: packed query p of the segment is row first_row + p / group, query head
// kv_head * group + p % group, with group = heads / kv_heads. With splits > 0 the context is cut at multiples of split_keys and the tiles
// write partial results: those of split s, packed query p lie in unit partial + s * split_units + p / 16, line p % 16, and attention_combine joins them.
struct SegmentInfo {
    uint64_t beams;           // BeamView of a beam segment
    uint32_t first_row;
    uint32_t rows;
    uint32_t table;           // first entry of the block table
    uint32_t table_blocks;    // entries of the block table
    uint32_t context;         // keys in the cache before the first row
    uint32_t kind;            // SEGMENT_*
    uint32_t level;           // beam: level of the codes that are this step's inputs
    uint32_t private_table;   // beam: first entry of the private block table
    uint32_t private_blocks;
    uint32_t stride;          // beam: places per level of the private table
    uint32_t splits;          // 0: the tiles write the result themselves; a beam segment has at least 1
    uint32_t split_keys;
    uint32_t partial;
    uint32_t split_units;
};
ARGS_SIZE(SegmentInfo, 64);

// A tile of packed queries against a range of keys of the context.
struct AttentionItem {
    uint32_t segment;
    uint32_t packed;      // first packed query of the tile
    uint32_t key_begin;
    uint32_t key_end;
    uint32_t split;       // which partial result; ignored if the segment has no splits
    uint32_t reserved[3];
};
ARGS_SIZE(AttentionItem, 32);

// ----------------------------------------------------------------------------------------------------------------- probe, checks

struct ProbeArgs {
    const float* x;               // [count]
    float* y;                     // [count]
    uint64_t count;
    float scale;
    float offset;
};
ARGS_SIZE(ProbeArgs, 32);

// kernels/checks.cu: each kernel says what it reads and writes.
struct CheckArgs {
    uint64_t in;
    uint64_t in2;
    uint64_t out;
    uint64_t out2;
    uint64_t n;
    uint32_t mode;
    uint32_t unused;
};
ARGS_SIZE(CheckArgs, 48);

// kernels/checks.cu: out [64, N] = a [64, k] b [N, k]^T.
struct CheckProductArgs {
    TensorMap a;
    TensorMap b;
    uint64_t out;                 // float [64, N]
    uint64_t k;
    uint64_t unused[6];
};
static_assert(sizeof(CheckProductArgs) == 320, "src/device/cuda/args.rs mirrors CheckProductArgs");

// ------------------------------------------------------------------------------------------------------- embed, rms_norm

struct EmbedArgs {
    const void* table;               // [vocab, hidden]
    const RowInfo* rows;
    const uint32_t* row_segment;     // [rows]
    const SegmentInfo* segments;
    const float* soft;               // [soft tokens, hidden]
    const StepCounts* counts;
    void* x;                         // [rows, hidden]
    uint32_t hidden;
    uint32_t vocab;
    uint32_t soft_tokens;            // capacity of soft
    uint32_t max_rows;
    uint32_t max_segments;
    uint32_t reserved;
};
ARGS_SIZE(EmbedArgs, 80);

struct NormArgs {
    const void* x;                // [max_rows, hidden]
    const float* weight;          // [hidden]
    void* out;                    // [.., hidden]
    const uint32_t* list;         // rows of x, one per row of out; null: row i of x is row i of out
    const RowGroup* group;        // rows of out
    uint32_t hidden;
    float eps;
    uint32_t max_rows;            // of x
    uint32_t max_out;             // of out
    uint32_t reserved[2];
};
ARGS_SIZE(NormArgs, 64);

// ------------------------------------------------------------------------------------------------------------- products

// What becomes of a product: rounded and stored; stored as float; added to `out`, which is the residual stream; or, with the gate's rows of W
// before the up projection's, out[j] = silu(gate_j) * up_j.
constexpr uint32_t EPILOGUE_STORE = 0, EPILOGUE_FLOAT = 1, EPILOGUE_RESIDUAL = 2, EPILOGUE_GATED = 3;

// out [rows, n] = x [rows, k] W [n, k]^T + bias; gated: out [rows, n / 2].
struct ProductArgs {
    const void* x;             // [max_rows, k]
    const void* w;             // [n, k]
    const float* bias;         // [n] or null
    const float* norm;         // [k]: weights of an RMS norm of x before the product; only where the entry says so
    void* out;                 // row i of the group begins at element group->out + i * ld_out
    const RowGroup* group;
    uint64_t capacity;         // elements of out
    uint32_t n;
    uint32_t k;                // a multiple of 8
    uint32_t max_rows;         // of x
    uint32_t bucket;           // most rows of the group; the grid covers them
    uint32_t ld_out;
    uint32_t epilogue;
    float eps;                 // of the norm
    uint32_t reserved[3];
};
ARGS_SIZE(ProductArgs, 96);

// A product whose operands arrive by bulk copies. The descriptors come first: they are 64-byte aligned.
struct alignas(64) BulkProductArgs {
    TensorMap x_map;           // x [max_rows, k] in boxes of 64 rows
    TensorMap w_map;           // W [n, k] in boxes of w_box rows
    ProductArgs product;
    uint32_t w_box;
    uint32_t reserved[7];
};
static_assert(sizeof(BulkProductArgs) == 384 && alignof(BulkProductArgs) == 64, "src/device/cuda/products.rs mirrors BulkProductArgs");


// ------------------------------------------------------------------------------------- q/k norm, rope, cache; attention

struct RopeArgs {
    const float* qkv;             // [rows, (heads + 2 kv_heads) * head_dim]
    const float* q_norm;          // [head_dim] or null
    const float* k_norm;
    const float* inv_freq;        // [head_dim / 2]
    const RowInfo* rows;
    const StepCounts* counts;
    void* q;                      // [rows, heads * head_dim]
    void* k;                      // [blocks, kv_heads, BLOCK_TOKENS, head_dim]
    void* v;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t cache_blocks;
    uint32_t max_rows;
    float eps;
    float scale;                  // of sine and cosine
};
ARGS_SIZE(RopeArgs, 96);

struct AttentionArgs {
    const void* q;                // [rows, heads * head_dim]
    const void* k;                // [cache_blocks, kv_heads, BLOCK_TOKENS, head_dim]
    const void* v;
    void* out;                    // [rows, heads * head_dim]
    float* partial;               // [units, kv_heads, 16, head_dim]: sums of exp(s - max) v
    float2* partial_sums;         // [units, kv_heads, 16]: (max of s * log2 e, sum)
    const SegmentInfo* segments;
    const AttentionItem* items;
    const uint32_t* item_count;
    const uint32_t* row_segment;
    const uint32_t* blocks;       // block tables
    const StepCounts* counts;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t cache_blocks;
    uint32_t max_rows;
    uint32_t max_segments;
    uint32_t max_items;
    uint32_t max_table;           // capacity of blocks
    uint32_t max_units;
    uint32_t window;              // 0: none
    float scale;                  // log2(e) / sqrt(head_dim)
    uint32_t reserved[2];
};
ARGS_SIZE(AttentionArgs, 144);

// kernels/attention_hopper.cu: keys and values as [cache_blocks * kv_heads * BLOCK_TOKENS, head_dim], boxes of BLOCK_TOKENS rows.
struct alignas(64) AttentionBulkArgs {
    TensorMap k;
    TensorMap v;
    AttentionArgs attention;
    uint32_t reserved[12];
};
static_assert(sizeof(AttentionBulkArgs) == 448 && alignof(AttentionBulkArgs) == 64, "src/device/cuda/attention.rs mirrors AttentionBulkArgs");

// ------------------------------------------------------------------------------------------------------------- sampling

constexpr uint32_t TEXT_DRAW = 0, TEXT_GREEDY = 1, TEXT_TARGET = 2;
constexpr uint32_t EDIT_COUNT = 0, EDIT_BIAS = 1, EDIT_BAN = 2;   // bits 30 and 31 of an edit; the others are the token
constexpr uint32_t TEXT_CHUNK = 8192;                             // tokens of a row that one block scans
constexpr uint32_t TEXT_BLOCK = 64;                               // tokens of an entry of the tables of maxima
constexpr uint32_t MAX_TOP = 64;                                  // likeliest tokens reported

// One text row of the plan.
struct TextInfo {
    uint64_t logits;          // element at which the row's logits begin
    uint64_t seed;
    uint64_t draw;
    uint32_t kind;            // TEXT_*
    uint32_t target;          // token to score
    uint32_t allow_open;      // not 0: the opener may be chosen
    uint32_t top_k;           // 0: off
    float temperature;
    float top_p;              // 1: off
    float least;              // min-p: smallest scaled logit that stays; minus infinity: off
    float repetition;
    float presence;
    float frequency;
    uint32_t edit_first;      // the row's edits, ascending by token
    uint32_t edit_count;
    uint32_t top;             // likeliest tokens asked for
    uint32_t result;          // the row's first entry of `results`
};
ARGS_SIZE(TextInfo, 80);

// What a block says of its part of a row.
struct TextPart {
    float raw_max;            // of the logits
    float raw_sum;            // of exp(x - raw_max); NaN if a logit is
    float max;                // of the logits that may be chosen and are not edited
    float sum;                // of exp((x - max) / temperature) of those, where top_p needs it
};
ARGS_SIZE(TextPart, 16);

// What the choice of a row leaves to the draw.
struct TextState {
    uint64_t head;            // best draw among the candidates looked at
    uint64_t best;            // best draw of all
    uint64_t cut;             // smallest candidate that top-k, top-p and min-p leave
    float max;                // largest logit after edits and masks
    float log_sum;            // of the row's own logits
    uint32_t wide;            // 0: nothing is left to draw
    uint32_t done;            // blocks of the draw that are done
    uint32_t reserved[2];
};
ARGS_SIZE(TextState, 48);

struct SampleArgs {
    const float* logits;
    const TextInfo* rows;
    const uint2* edits;           // [max_edits]: (EDIT_* << 30 | token, operand)
    const StepCounts* counts;
    const uint32_t* allowed;      // [parts * TEXT_CHUNK / 32]: bits of the tokens that text may contain
    uint32_t* masks;              // [max_rows, parts * TEXT_CHUNK / 32]: those of a row that are not edited
    float* raw_maxima;            // [max_rows, parts * TEXT_CHUNK / TEXT_BLOCK], where likeliest tokens are asked for
    float* maxima;                // likewise, of the tokens in the mask
    TextPart* parts_of;           // [max_rows, parts]
    float* edited;                // [max_edits]: logits after edits; minus infinity but at a token's first edit
    TextState* states;            // [max_rows]
    uint4* results;               // [max_results]: per row (token, log-probability, fault, found | asked << 16), then pairs (token, log-probability)
    uint64_t logits_len;          // elements of logits
    uint32_t vocab;
    uint32_t opener;              // NONE: there is none
    uint32_t parts;               // ceil(vocab / TEXT_CHUNK)
    uint32_t max_rows;
    uint32_t max_edits;
    uint32_t max_results;
};
ARGS_SIZE(SampleArgs, 128);

// ------------------------------------------------------------------------------------------------------------- SID step

