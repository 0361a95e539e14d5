// Text sampling: per text row r, from float32 logits x [rows, vocab], one token, its log-probability and the likeliest tokens.
//
//   x' = x after edits (penalties, bias, bans; a sparse list per row), minus infinity outside of the mask of text tokens
//   s  = (x' - max x') / temperature
//   left = the tokens that top-k, then top-p, then min-p leave of s
//   token = argmax over left of s[t] + g[t], equal sums to the smaller t      (greedy: argmax x')
//   log-probability of t = x[t] - ln sum exp x
//
// src/device/cpu/sample.rs is the definition. s, the noise g and every comparison have the host's bits, so the tokens are the host's; sums
// of masses differ from the host's by rounding, which can move top-p's edge by a token and the last places of a log-probability.
//
// Bytes decide: 128 rows of 131k logits are 67 MB, more than the second-level cache. They are read once from memory by all blocks
// (sample_scan, a part of 8192 tokens each, whole in registers), which leave the maximum of every 64 tokens. Of what matters to a choice there is
// little, and those maxima, 1/64 of the row, tell where it lies: sample_choose, a block per row, reads just those 64s again, from the cache,
// and settles most rows in shared memory. Only where text is drawn from nearly the whole vocabulary are all tokens looked at once more,
// by all blocks again (sample_draw), nearly all of them without a logarithm.
//
// sample.cuh has the candidates and their selection.
#include "sample.cuh"

namespace {

// ------------------------------------------------------------------------------------------------------------- sample_scan

// Logits of this thread: element j of group i is token part * TEXT_CHUNK + (i * SCAN_THREADS + thread) * 4 + j; minus infinity beyond the row.
struct Piece {
    static constexpr uint32_t GROUPS = TEXT_CHUNK / SCAN_THREADS / 4;
    float x[GROUPS][4];

    __device__ void load(const float* row, uint32_t first, uint32_t vocab) {
        const bool aligned = (reinterpret_cast<uintptr_t>(row) & 15) == 0;
#pragma unroll
        for (uint32_t i = 0; i < GROUPS; i++) {
            const uint32_t token = first + (i * SCAN_THREADS + threadIdx.x) * 4;
            if (aligned && token + 4 <= vocab) {
                const uint4 four = dev::load16(row + token);
                x[i][0] = __uint_as_float(four.x), x[i][1] = __uint_as_float(four.y);
                x[i][2] = __uint_as_float(four.z), x[i][3] = __uint_as_float(four.w);
            } else {
#pragma unroll
                for (uint32_t j = 0; j < 4; j++) x[i][j] = token + j < vocab ? row[token + j] : MINUS_INFINITY;
            }
        }
    }
};

// This part's mask: tokens that may be chosen and are not edited. All threads; `words` [PART_WORDS] shared.
__device__ void scan_mask(const SampleArgs& a, const TextInfo& info, uint32_t part, uint32_t* words) {
    static_assert(PART_WORDS == SCAN_THREADS);
    const uint32_t word = part * PART_WORDS + threadIdx.x;
    uint32_t bits = a.allowed[word];
    if (info.allow_open != 0 && a.opener < a.vocab && a.opener / 32 == word) bits |= 1u << a.opener % 32;
    words[threadIdx.x] = bits;
    __syncthreads();
    const uint2 edits = edits_of(a, info);
    for (uint32_t i = threadIdx.x; i < edits.y; i += SCAN_THREADS) {
        const uint32_t token = token_of_edit(a.edits[edits.x + i]);
        if (token / TEXT_CHUNK == part) atomicAnd(&words[token % TEXT_CHUNK / 32], ~(1u << token % 32));
    }
    __syncthreads();
    a.masks[(size_t(blockIdx.y) * a.parts + part) * PART_WORDS + threadIdx.x] = words[threadIdx.x];
}

// The largest over the 16 threads that hold a block of 64 tokens.
DEVICE_INLINE float block_of_64_max(float x) {
#pragma unroll
    for (uint32_t lane = 1; lane < 16; lane *= 2) x = fmaxf(x, __shfl_xor_sync(dev::FULL_MASK, x, lane));
    return x;
}

DEVICE_INLINE float warp_max(float x) {
    x = block_of_64_max(x);
    return fmaxf(x, __shfl_xor_sync(dev::FULL_MASK, x, 16));
}
DEVICE_INLINE float warp_sum(float x) {
#pragma unroll
    for (uint32_t lane = 1; lane < 32; lane *= 2) x += __shfl_xor_sync(dev::FULL_MASK, x, lane);
    return x;
}

struct Maxima {
    float raw, left;
    bool nan;
};

// Writes the maxima of every 64 tokens; returns this thread's warp's.
__device__ Maxima scan_maxima(const SampleArgs& a, const TextInfo& info, uint32_t part, const Piece& piece, const uint32_t* words) {
    Maxima all{MINUS_INFINITY, MINUS_INFINITY, false};
    const size_t first = (size_t(blockIdx.y) * a.parts + part) * PART_BLOCKS;
#pragma unroll
    for (uint32_t i = 0; i < Piece::GROUPS; i++) {
        const uint32_t at = (i * SCAN_THREADS + threadIdx.x) * 4;
        const uint32_t bits = words[at / 32] >> at % 32;
        float raw = MINUS_INFINITY, left = MINUS_INFINITY;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const float x = piece.x[i][j];
            all.nan |= elementary::is_nan(x);
            raw = fmaxf(raw, x);
            left = fmaxf(left, (bits >> j & 1) != 0 ? x : MINUS_INFINITY);
        }
        raw = block_of_64_max(raw), left = block_of_64_max(left);
        if (threadIdx.x % 16 == 0) {
            a.maxima[first + at / TEXT_BLOCK] = left;
            if (info.top != 0) a.raw_maxima[first + at / TEXT_BLOCK] = raw;
        }
        all.raw = fmaxf(all.raw, raw), all.left = fmaxf(all.left, left);
    }
    all.raw = fmaxf(all.raw, __shfl_xor_sync(dev::FULL_MASK, all.raw, 16));
    all.left = fmaxf(all.left, __shfl_xor_sync(dev::FULL_MASK, all.left, 16));
    all.nan = __any_sync(dev::FULL_MASK, all.nan);
    return all;
}

// Grid (parts, text rows).
__device__ void scan_body(const SampleArgs& a) {
    constexpr uint32_t WARPS = SCAN_THREADS / 32;
    SHARED(uint32_t, words, PART_WORDS);
    SHARED(Maxima, maxima, WARPS);
    SHARED(float2, sums, WARPS);
    dev::dependency_wait();
    dev::dependency_trigger();
    const uint32_t part = blockIdx.x, warp = threadIdx.x / 32;
    if (!is_text_row(a, blockIdx.y)) return;
    const TextInfo info = a.rows[blockIdx.y];
    if (!readable(a, info)) return;
    Piece piece;
    piece.load(a.logits + info.logits, part * TEXT_CHUNK, a.vocab);
    scan_mask(a, info, part, words);
    Maxima all = scan_maxima(a, info, part, piece, words);
    if (threadIdx.x % 32 == 0) maxima[warp] = all;
    __syncthreads();
    for (uint32_t i = 0; i < WARPS; i++) {
        all.raw = fmaxf(all.raw, maxima[i].raw), all.left = fmaxf(all.left, maxima[i].left);
        all.nan |= maxima[i].nan;
    }
    // An infinite maximum needs no sum.
    const float left = fminf(all.left, FLOAT_MAX), scale = dev::div_rn(elementary::LOG2_E, info.temperature);
    const bool mass = wants_mass(a, info) && left > MINUS_INFINITY, sum = !elementary::is_infinite(all.raw);
    float2 of_thread = make_float2(0.0f, 0.0f);
#pragma unroll
    for (uint32_t i = 0; i < Piece::GROUPS; i++) {
        const uint32_t at = (i * SCAN_THREADS + threadIdx.x) * 4;
        const uint32_t bits = words[at / 32] >> at % 32;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const float x = piece.x[i][j];
            if (sum) of_thread.x += dev::exp2_approx((x - all.raw) * elementary::LOG2_E);
            if (mass && (bits >> j & 1) != 0 && x > MINUS_INFINITY) of_thread.y += dev::exp2_approx((fminf(x, FLOAT_MAX) - left) * scale);
        }
    }
    of_thread = make_float2(warp_sum(of_thread.x), warp_sum(of_thread.y));
    if (threadIdx.x % 32 == 0) sums[warp] = of_thread;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float2 total = sums[0];
    for (uint32_t i = 1; i < WARPS; i++) total.x += sums[i].x, total.y += sums[i].y;
    const float raw_sum = all.nan ? __uint_as_float(0x7fffffffu) : total.x;
    a.parts_of[size_t(blockIdx.y) * a.parts + part] = TextPart{all.raw, raw_sum, all.left, total.y};
}

// ------------------------------------------------------------------------------------------------------------- sample_choose

// The row's logits after edits, one per edited token. Each thread reads later what it writes here: every loop over edits goes in its strides.
__device__ void edit_row(const SampleArgs& a, const TextInfo& info, uint2 edits) {
    const float* const logits = a.logits + info.logits;
    const uint2* const list = a.edits + edits.x;
    for (uint32_t i = threadIdx.x; i < edits.y; i += CHOOSE_THREADS) {
        const uint32_t token = token_of_edit(list[i]);
        const bool first = i == 0 || token_of_edit(list[i - 1]) != token;
        float x = MINUS_INFINITY;
        if (first && token < a.vocab && ((a.allowed[token / 32] >> token % 32 & 1) != 0 || (info.allow_open != 0 && token == a.opener))) {
            x = logits[token];
            for (uint32_t j = i; j < edits.y && token_of_edit(list[j]) == token; j++) {
                const uint2 edit = list[j];
                if (edit.x >> 30 == EDIT_COUNT) {
                    x = x > 0.0f ? dev::div_rn(x, info.repetition) : dev::mul_rn(x, info.repetition);
                    if (edit.y > 0) {
                        x = dev::sub_rn(x, dev::mul_rn(info.frequency, static_cast<float>(edit.y)));
                        x = dev::sub_rn(x, info.presence);
                    }
                } else {
                    x = edit.x >> 30 == EDIT_BIAS ? dev::add_rn(x, __uint_as_float(edit.y)) : MINUS_INFINITY;
                }
                // What hostile penalties and biases make of a logit must not be a NaN.
                if (elementary::is_nan(x)) x = MINUS_INFINITY;
            }
        }
        a.edited[edits.x + i] = x;
    }
}

// What the parts of the row say together; the sums in the order of a tree over lanes, given by the number of parts.
struct Whole {
    float log_sum;
    bool nan;
};
__device__ Whole join_parts(const SampleArgs& a, const TextPart* parts) {
    float max = MINUS_INFINITY, sum = 0.0f;
    for (uint32_t i = threadIdx.x % 32; i < a.parts; i += 32) max = fmaxf(max, parts[i].raw_max);
    max = warp_max(max);
    for (uint32_t i = threadIdx.x % 32; i < a.parts; i += 32) {
        const TextPart part = parts[i];
        // A part of nothing but minus infinity has no sum; with an infinite maximum the sum does not matter.
        const float share = part.raw_max > MINUS_INFINITY && max < elementary::INFINITE ? dev::exp2_approx((part.raw_max - max) * elementary::LOG2_E) : 0.0f;
        sum += part.raw_sum * share;
        if (elementary::is_nan(part.raw_sum)) sum = part.raw_sum;
    }
    sum = warp_sum(sum);
    return Whole{elementary::log_sum(max, sum), elementary::is_nan(sum)};
}

// The mass of all candidates, from the sums of the parts and the edits, in units of MASS_ONE; rounded as float sums are.
__device__ double whole_mass(const Room& room, const View& view, const TextPart* parts, uint32_t count) {
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % 32; i < count; i += 32) {
        const TextPart part = parts[i];
        if (part.max > MINUS_INFINITY) sum += part.sum * elementary::exp(scaled(part.max, view.max, view.temperature));
    }
    sum = warp_sum(sum);
    uint64_t edited = 0;
    for (uint32_t i = threadIdx.x; i < view.edit_count; i += CHOOSE_THREADS) {
        const uint64_t key = view.key(view.edited[i], token_of_edit(view.edits[i]));
        if (key != 0) edited += mass_of(key);
    }
    return double(sum) * double(MASS_ONE) + double(block_sum(room, edited));
}

// The token that may be chosen with the largest logit, the smallest among equals; NONE if there is none.
__device__ uint32_t greedy(const Room& room, const View& view, const float* maxima, uint32_t blocks, float best) {
    if (!(best > MINUS_INFINITY)) return NONE;
    uint64_t first = 0;   // complement of the smallest block that holds the largest
    for (uint32_t i = threadIdx.x; i < blocks; i += CHOOSE_THREADS)
        if (maxima[i] == best) first = max(first, uint64_t(NONE - i));
    first = block_max(room, first);
    uint64_t token = 0;   // likewise
    if (first != 0 && threadIdx.x < TEXT_BLOCK) {
        const uint32_t at = (NONE - static_cast<uint32_t>(first)) * TEXT_BLOCK + threadIdx.x;
        if (view.has(at) && view.logits[at] == best) token = NONE - at;
    }
    for (uint32_t i = threadIdx.x; i < view.edit_count; i += CHOOSE_THREADS)
        if (view.edited[i] == best) token = max(token, uint64_t(NONE - token_of_edit(view.edits[i])));
    return NONE - static_cast<uint32_t>(block_max(room, token));
}

// The likeliest tokens by the row's own logits, best first, at `out`; returns how many.
__device__ uint32_t likeliest(const SampleArgs& a, const Room& room, const View& view, uint32_t most, float log_sum, uint2* out) {
    const uint32_t blocks = a.parts * PART_BLOCKS;
    const BlockMaxima maxima{view, a.raw_maxima + size_t(blockIdx.x) * blocks, blocks};
    // At most `most` blocks hold keys from here up, so that their keys fit into the list.
    const uint64_t bound = select<false>(room, maxima, 1, most), lower = max(bound, uint64_t(1));
    const uint32_t active = activate(room, maxima, lower);
    const uint32_t listed = min(collect(room, Source{room, view, false, active}, lower, room.list, IN_LIST, LIST), LIST);
    const Source list{room, view, true, listed};
    const uint64_t least = max(select<false>(room, list, lower, most), uint64_t(1));
    const uint32_t found = min(collect(room, list, least, room.group, IN_GROUP, GROUP), most);
    if (threadIdx.x < found) {
        const uint64_t key = room.group[threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t i = 0; i < found; i++) rank += room.group[i] > key ? 1 : 0;
        out[rank] = make_uint2(token_of(key), __float_as_uint(elementary::log_probability(value_of(key), log_sum)));
    }
    return found;
}

// The largest draw of the keys from `cut` up: (sum as `ordered` orders it, complement of the token). 0: none.
DEVICE_INLINE uint64_t drawn(float s, float gumbel, uint32_t token) {
    return uint64_t(elementary::ordered(dev::add_rn(s, gumbel))) << 32 | (NONE - token);
}

__device__ elementary::Noise noise_of(const TextInfo& info) {
    return elementary::Noise{make_uint2(static_cast<uint32_t>(info.seed), static_cast<uint32_t>(info.seed >> 32)),
                             make_uint2(static_cast<uint32_t>(info.draw), static_cast<uint32_t>(info.draw >> 32)), elementary::DOMAIN_TEXT};
}

// The smallest key that top-k, top-p and min-p leave. `head`: the keys from `floor` up, listed if they fit.
__device__ uint64_t cut_of(const SampleArgs& a, const TextInfo& info, const Room& room, const BlockMaxima& maxima, const Source& head, uint64_t floor) {
    uint64_t cut = FLOOR;
    const bool top_k = info.top_k > 0 && info.top_k < a.vocab;
    if (top_k) {
        const uint64_t last = select<false>(room, head, floor, info.top_k);
        // All that are equal to the k-th stay.
        if (last != 0) cut = last & LOWEST_TOKENS;
    }
    if (info.top_p < 1.0f) {
        double goal = -1.0;
        if (!top_k && head.listed) {
            uint64_t mass = 0;
            head.each([&](uint64_t key) { mass += mass_of(key); });
            mass = block_sum(room, mass);
            goal = double(info.top_p) * whole_mass(room, head.view, a.parts_of + size_t(blockIdx.x) * a.parts, a.parts);
            if (!(goal <= double(mass))) goal = -1.0;
        }
        Source from = head;
        if (goal < 0.0) {
            // The nucleus is larger than the head: all that may be left is looked at. The list stays what it is.
            if (!top_k) {
                from.listed = false;
                from.length = activate(room, maxima, FLOOR);
            }
            uint64_t mass = 0;
            from.each([&](uint64_t key) { mass += key >= cut ? mass_of(key) : 0; });
            goal = double(info.top_p) * double(block_sum(room, mass));
        }
        const uint64_t last = select<true>(room, from, cut, max(uint64_t(1), static_cast<uint64_t>(ceil(fmax(goal, 0.0)))));
        if (last != 0) cut = last;
    }
    const uint64_t least = info.least > MINUS_INFINITY ? make_key(info.least, info.least, TOKEN_MASK) : 0;
    return max(cut, least);
}

// Draws a token, or leaves the draw to `sample_draw`; `state` receives the best so far and what is left. False: nothing can be drawn.
__device__ bool choose(const SampleArgs& a, const TextInfo& info, const Room& room, const BlockMaxima& maxima, TextState& state) {
    const View& view = maxima.view;
    const bool top_k = info.top_k > 0 && info.top_k < a.vocab;
    const uint32_t goal = top_k ? info.top_k : info.top_p < 1.0f ? HEAD_BLOCKS : SEED_BLOCKS;
    // At least `goal` candidates lie from here up, with all that are equal to the last, where there are so many; all of them if not.
    const uint64_t floor = max(select<false>(room, maxima, FLOOR, goal) & LOWEST_TOKENS, FLOOR);
    const uint32_t active = activate(room, maxima, floor);
    Source head{room, view, false, active};
    const uint32_t count = collect(room, head, floor, room.list, IN_LIST, LIST);
    if (count <= LIST) head.listed = true, head.length = count;
    state.cut = cut_of(a, info, room, maxima, head, floor);
    const elementary::Noise noise = noise_of(info);
    uint64_t best = 0;
    const auto draw = [&](uint64_t key) {
        if (key < state.cut) return;
        const uint32_t token = token_of(key);
        best = max(best, drawn(value_of(key), noise.gumbel_of_token(token), token));
    };
    state.wide = !head.listed || state.cut < floor ? 1 : 0;
    if (head.listed) head.each(draw);
    // What is edited is not in the mask, and so is drawn here or nowhere.
    if (state.wide != 0)
        for (uint32_t i = threadIdx.x; i < view.edit_count; i += CHOOSE_THREADS) draw(view.key(view.edited[i], token_of_edit(view.edits[i])));
    state.head = state.best = block_max(room, best);
    return state.wide != 0 || state.best != 0;
}

// The largest logit that may be chosen.
__device__ float largest(const Room& room, const View& view, const float* maxima, uint32_t blocks) {
    float best = MINUS_INFINITY;
    for (uint32_t i = threadIdx.x; i < blocks; i += CHOOSE_THREADS) best = fmaxf(best, maxima[i]);
    for (uint32_t i = threadIdx.x; i < view.edit_count; i += CHOOSE_THREADS) best = fmaxf(best, view.edited[i]);
    return elementary::from_ordered(static_cast<uint32_t>(block_max(room, elementary::ordered(best))));
}

// Grid (text rows). A row that cannot be read or has no place for its result gets none.
__device__ void choose_body(const SampleArgs& a) {
    DYNAMIC_SHARED(shared);
    dev::dependency_wait();
    dev::dependency_trigger();
    if (!is_text_row(a, blockIdx.x)) return;
    const uint32_t blocks = a.parts * PART_BLOCKS;
    const Room room(shared, blocks);
    const TextInfo info = a.rows[blockIdx.x];
    const uint32_t asked = min(info.top, MAX_TOP);
    const bool placed = info.result < a.max_results && (asked + 1) / 2 < a.max_results - info.result;
    TextState state{};
    if (!placed || !readable(a, info)) {
        if (threadIdx.x == 0) a.states[blockIdx.x] = state;
        return;
    }
    const uint2 edits = edits_of(a, info);
    const float* const logits = a.logits + info.logits;
    const Whole whole = join_parts(a, a.parts_of + size_t(blockIdx.x) * a.parts);
    state.log_sum = whole.log_sum;
    uint32_t token = NONE, found = 0;
    bool fault = whole.nan;
    if (!fault && info.kind == TEXT_TARGET) {
        token = info.target;
        fault = token >= a.vocab;
    } else if (!fault) {
        edit_row(a, info, edits);
        View view{logits, a.masks + size_t(blockIdx.x) * a.parts * PART_WORDS, a.edited + edits.x, a.edits + edits.x, edits.y, a.vocab, 0.0f, info.temperature};
        const BlockMaxima maxima{view, a.maxima + size_t(blockIdx.x) * blocks, blocks};
        const float best = largest(room, view, maxima.maxima, blocks);
        state.max = view.max = fminf(best, FLOAT_MAX);
        if (info.kind == TEXT_GREEDY) {
            token = greedy(room, view, maxima.maxima, blocks, best);
            fault = token >= a.vocab;
        } else {
            fault = !(best > MINUS_INFINITY) || !choose(a, info, room, maxima, state);
            if (!fault && state.wide == 0) token = NONE - static_cast<uint32_t>(state.best);
        }
    }
    if (!fault && asked != 0) {
        const View own{logits, nullptr, nullptr, nullptr, 0, a.vocab, whole.log_sum, 1.0f};
        found = likeliest(a, room, own, asked, whole.log_sum, reinterpret_cast<uint2*>(a.results + info.result + 1));
    }
    if (threadIdx.x != 0) return;
    const float logprob = token < a.vocab ? elementary::log_probability(logits[token], whole.log_sum) : 0.0f;
    a.results[info.result] = make_uint4(token, __float_as_uint(logprob), fault ? 1 : 0, found | asked << 16);
    a.states[blockIdx.x] = state;
}

// ------------------------------------------------------------------------------------------------------------- sample_draw

// The best draw of this part that may be above `best`, from its tokens that are not edited. Tokens 64 b + l, + 16, + 32, + 48 share their noise words.
__device__ uint64_t draw_part(const SampleArgs& a, const TextInfo& info, const TextState& state, uint64_t best) {
    const size_t row = blockIdx.y;
    const View view{a.logits + info.logits, a.masks + row * a.parts * PART_WORDS, nullptr, nullptr, 0, a.vocab, state.max, info.temperature};
    const float* const maxima = a.maxima + row * a.parts * PART_BLOCKS;
    const elementary::Noise noise = noise_of(info);
    for (uint32_t unit = threadIdx.x; unit < TEXT_CHUNK / 4; unit += SCAN_THREADS) {
        const uint32_t block = blockIdx.x * PART_BLOCKS + unit / 16, lane = unit % 16, first = block * TEXT_BLOCK + lane;
        // A sum below the best cannot win. No noise is larger than GUMBEL_MAX, and rounding keeps order.
        const uint64_t most = view.key(maxima[block], 0);
        if (most < state.cut || drawn(value_of(most), GUMBEL_MAX, 0) < best) continue;
        float x[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) x[j] = view.has(first + 16 * j) ? view.logits[first + 16 * j] : MINUS_INFINITY;
        const uint4 four = noise.words(block * 16 + lane);
        const uint32_t word[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint64_t key = view.key(x[j], first + 16 * j);
            if (key < state.cut) continue;
            // -ln(-ln(1 - w)) is at most -ln w: one logarithm of the fast kind, with room for its error, rules out nearly all.
            const float bound = dev::log2_approx((static_cast<float>(word[j]) + 0.5f) * 2.3283064365386963e-10f) * -0.6931472f + 0.01f;
            if (drawn(value_of(key), bound, 0) < best) continue;
            best = max(best, drawn(value_of(key), elementary::gumbel(word[j]), first + 16 * j));
        }
    }
    return best;
}

// Grid (parts, text rows): rows that sample_choose left. The largest of all parts' best is the draw; the last block to finish writes it.
__device__ void draw_body(const SampleArgs& a) {
    SHARED(uint64_t, partial, SCAN_THREADS / 32);
    dev::dependency_wait();
    dev::dependency_trigger();
    if (!is_text_row(a, blockIdx.y)) return;
    TextState& shared_state = a.states[blockIdx.y];
    if (shared_state.wide == 0) return;
    const TextInfo info = a.rows[blockIdx.y];
    TextState state{};
    state.head = shared_state.head, state.cut = shared_state.cut, state.max = shared_state.max, state.log_sum = shared_state.log_sum;
    uint64_t best = draw_part(a, info, state, state.head);
    for (uint32_t lane = 16; lane > 0; lane /= 2) best = max(best, __shfl_xor_sync(dev::FULL_MASK, best, lane));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (uint32_t i = 0; i < SCAN_THREADS / 32; i++) best = max(best, partial[i]);
    using Word = unsigned long long;
    atomicMax(reinterpret_cast<Word*>(&shared_state.best), Word(best));
    if (dev::add_release(&shared_state.done, 1) + 1 < gridDim.x) return;
    best = atomicMax(reinterpret_cast<Word*>(&shared_state.best), Word(0));
    uint4& result = a.results[info.result];
    const uint32_t token = NONE - static_cast<uint32_t>(best);
    if (best == 0 || token >= a.vocab) {
        result.z = 1;
        return;
    }
    result.x = token;
    result.y = __float_as_uint(elementary::log_probability(a.logits[info.logits + token], state.log_sum));
}

}  // namespace

KERNEL(sample_scan, SampleArgs, 256, 4) { scan_body(a); }
KERNEL(sample_choose, SampleArgs, 512, 1) { choose_body(a); }
KERNEL(sample_draw, SampleArgs, 256, 4) { draw_body(a); }
