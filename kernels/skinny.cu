// out [rows, n] = x [rows, k] W [n, k]^T (+ bias) for at most 32 rows: W is read once, at the speed of memory.
//
// A block owns 16 rows of W per group of 8 warps; the warps share k: chunk c (64 elements, one 128-byte line of each row of W)
// belongs to warp c % 8. There is no shared memory on the way of W. mma m16n8k16 sums over k in any order, provided both operands agree:
// lane (g, t) = (lane / 4, lane % 4) reads the 16 contiguous bytes at k = 32 h + 8 t of rows g and g + 8 of W and of row g of x,
// and takes words 0, 1 as its part of one mma, words 2, 3 as its part of the next. Each lane keeps DEPTH chunks (4 loads each) in
// flight and uses a chunk while its successors travel.
//
// Why this shape. The time is n * k * 2 bytes over 4.3 TB/s, if each of 132 multiprocessors has some 25-40 KB in flight: at 8 rows
// 4 blocks of 8 warps are resident (3 with the norm), 4 KB per warp, 128 KB. The rows of x come through the first-level cache (W passes it by): every block reads
// all of x, rows / 16 of the bytes that it reads of W. At 16 and 32 rows a block therefore has two groups of 16 rows of W whose warps read the
// same x at about the same time. k is not split over blocks: n = 1024 gives 64 blocks, and each has all of its bytes for k <= 1024
// in flight at once; a join across blocks would cost about what it gains.
//
// The order of the sums depends on k alone (chunks of a warp in order, then the warps in order), not on the rows beside, nor on the
// entry: this kernel is the one of reproducible mode, where blockIdx.x counts tiles of rows (they follow
// each other, so that W comes from memory once).
//
// Gated: the upper half of an mma's 16 rows are gate rows, the lower half the up rows that belong to them.
// Entries `_norm`: x is normed and rounded while the fragments are made; each block computes the scales of its 8 rows itself, while
// its first weights travel.
#include "products.cuh"

namespace {

using products::Span;

constexpr uint32_t WARPS = 8, CHUNK = 64, DEPTH = 2;

// The weights of a chunk, as one lane holds them: [half of the chunk], rows g and g + 8.
struct Weights {
    uint4 low[2], high[2];
};

template <class T>
DEVICE_INLINE uint4 piece(const T* row, uint32_t at, uint32_t k, bool stream) {
    if (at >= k) return make_uint4(0, 0, 0, 0);
    return stream ? dev::load16_stream(row + at) : dev::load16(row + at);
}

template <class T>
DEVICE_INLINE void load_weights(Weights& w, const T* low, const T* high, uint32_t at, uint32_t k) {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        w.low[h] = piece(low, at + h * 32, k, true);
        w.high[h] = piece(high, at + h * 32, k, true);
    }
}

// acc [16, 8] += W piece [16, 32] x piece [8, 32]^T.
template <class T>
DEVICE_INLINE void multiply(float (&acc)[4], const uint4& low, const uint4& high, const uint4& x) {
    const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, b0[2] = {x.x, x.y};
    const uint32_t a1[4] = {low.z, high.z, low.w, high.w}, b1[2] = {x.z, x.w};
    dev::mma_16816<T>(acc, a0, b0);
    dev::mma_16816<T>(acc, a1, b1);
}

// Rows of W that lane group g of a 16-row tile reads; those beyond W repeat the last one, and nobody writes what comes of them.
struct TileRows {
    uint32_t low, high;
};
DEVICE_INLINE TileRows rows_of_tile(const ProductArgs& a, uint32_t tile, uint32_t g) {
    if (a.epilogue == EPILOGUE_GATED) {
        const uint32_t gate = min(tile * 8 + g, a.n / 2 - 1);
        return {gate, gate + a.n / 2};
    }
    return {min(tile * 16 + g, a.n - 1), min(tile * 16 + g + 8, a.n - 1)};
}

// TILES: 8-row tiles of x; GROUPS: 16-row tiles of W of a block.
template <class T, int TILES, int GROUPS, bool NORM>
DEVICE_INLINE void skinny(const ProductArgs& a) {
    static_assert(!NORM || (TILES == 1 && GROUPS == 1), "the norm's order of sums is that of 8 warps");
    constexpr uint32_t ROWS = TILES * 8;
    constexpr uint32_t LINE = TILES == 1 ? ROWS : ROWS + 8;   // floats; keeps a quarter warp's stores in different banks
    SHARED(float, partial, GROUPS * WARPS * 16 * LINE);        // [group, warp, row of W, row of x]

    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t warp = threadIdx.x / 32, split = warp % WARPS, group = warp / WARPS;
    const TileRows tile = rows_of_tile(a, blockIdx.y * GROUPS + group, g);
    const T* const low = static_cast<const T*>(a.w) + size_t(tile.low) * a.k;
    const T* const high = static_cast<const T*>(a.w) + size_t(tile.high) * a.k;

    // Nothing writes weights: the first ones are on their way before the previous launch is done.
    Weights w[DEPTH];
    uint32_t at = split * CHUNK + t * 8;
#pragma unroll
    for (uint32_t d = 0; d < DEPTH; d++) load_weights(w[d], low, high, at + d * WARPS * CHUNK, a.k);
    dev::dependency_trigger();
    dev::dependency_wait();

    const Span span = products::span_of(a);
    const uint32_t first = blockIdx.x * ROWS;
    if (first >= span.rows) return;
    // Rows of the tile beyond the group repeat its last one: a column of the product that nobody writes.
    const T* const x = static_cast<const T*>(a.x) + size_t(span.first + first) * a.k;
    uint32_t line[TILES];   // elements from x: at most 31 rows
#pragma unroll
    for (uint32_t i = 0; i < TILES; i++) line[i] = min(i * 8 + g, span.rows - first - 1) * a.k;

    float scale = 0.0f;
    if constexpr (NORM) {
        SHARED(float, shares, ROWS * WARPS);   // [row, warp]
#pragma unroll 4
        for (uint32_t row = 0; row < 8; row++) {
            const uint32_t source = span.first + min(first + row, span.rows - 1);
            const float sum = products::square_sum(static_cast<const T*>(a.x) + size_t(source) * a.k, a.k, threadIdx.x);
            if (lane == 0) shares[row * WARPS + warp] = sum;
        }
        __syncthreads();
        scale = products::inverse_rms(shares + g * WARPS, a.k, a.eps);
    }

    float acc[TILES][4] = {};
#pragma unroll 1
    for (uint32_t chunk = split * CHUNK; chunk < a.k; chunk += DEPTH * WARPS * CHUNK, at += DEPTH * WARPS * CHUNK) {
#pragma unroll
        for (uint32_t d = 0; d < DEPTH; d++) {
            const uint32_t here = at + d * WARPS * CHUNK;
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                // Past the end for the whole warp. The branch also keeps x of one half chunk at a time in registers, which are for weights.
                if (here - t * 8 + h * 32 >= a.k) break;
#pragma unroll
                for (uint32_t i = 0; i < TILES; i++) {
                    dev::Vec8<T> row = {piece(x + line[i], here + h * 32, a.k, false)};
                    if constexpr (NORM) {
                        if (here + h * 32 < a.k) row = products::normed(row, scale, a.norm + here + h * 32);
                    }
                    multiply<T>(acc[i], w[d].low[h], w[d].high[h], row.raw);
                }
            }
            load_weights(w[d], low, high, here + DEPTH * WARPS * CHUNK, a.k);
        }
    }

    float* const mine = partial + (group * WARPS + split) * 16 * LINE;
#pragma unroll
    for (uint32_t i = 0; i < TILES; i++) {
        *reinterpret_cast<float2*>(mine + g * LINE + i * 8 + 2 * t) = make_float2(acc[i][0], acc[i][1]);
        *reinterpret_cast<float2*>(mine + (g + 8) * LINE + i * 8 + 2 * t) = make_float2(acc[i][2], acc[i][3]);
    }
    __syncthreads();

    // Row i of W's tile `part`, row r of x, over all of k.
    const auto total = [&](uint32_t part, uint32_t i, uint32_t r) {
        const float* const sums = partial + (part * WARPS * 16 + i) * LINE + r;
        float sum = sums[0];
#pragma unroll
        for (uint32_t s = 1; s < WARPS; s++) sum += sums[s * 16 * LINE];
        return sum;
    };
    const bool gated = a.epilogue == EPILOGUE_GATED;
    const uint32_t pairs = gated ? 4 : 8;   // pairs of columns of a tile
#pragma unroll 1
    for (uint32_t item = threadIdx.x; item < GROUPS * pairs * ROWS; item += blockDim.x) {
        const uint32_t r = item / (GROUPS * pairs), part = item / pairs % GROUPS, i = item % pairs * 2;
        const uint32_t j = (blockIdx.y * GROUPS + part) * pairs * 2 + i;
        float one = total(part, i, r), two = total(part, i + 1, r);
        if (gated) {
            one = products::silu(one) * total(part, i + 8, r);
            two = products::silu(two) * total(part, i + 9, r);
        }
        products::write_pair<T>(a, span, first + r, j, one, two);
    }
}

}  // namespace

KERNEL(skinny_8_bf16, ProductArgs, 256, 4) { skinny<bf16, 1, 1, false>(a); }
KERNEL(skinny_8_f16, ProductArgs, 256, 4) { skinny<f16, 1, 1, false>(a); }
KERNEL(skinny_8_norm_bf16, ProductArgs, 256, 3) { skinny<bf16, 1, 1, true>(a); }
KERNEL(skinny_8_norm_f16, ProductArgs, 256, 3) { skinny<f16, 1, 1, true>(a); }
KERNEL(skinny_16_bf16, ProductArgs, 512, 1) { skinny<bf16, 2, 2, false>(a); }
KERNEL(skinny_16_f16, ProductArgs, 512, 1) { skinny<f16, 2, 2, false>(a); }
KERNEL(skinny_32_bf16, ProductArgs, 512, 1) { skinny<bf16, 4, 2, false>(a); }
KERNEL(skinny_32_f16, ProductArgs, 512, 1) { skinny<f16, 4, 2, false>(a); }
