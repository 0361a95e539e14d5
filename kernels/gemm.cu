// out [rows, n] = x [rows, k] W [n, k]^T (+ bias) for many rows, on any GPU from sm_80: cp.async, ldmatrix, mma.
//
// A block computes BM rows by BN columns; a warp of it BM / 2 or 32 rows by 32 columns. k advances by 64 elements, one 128-byte line of
// each row, through a ring of STAGES stages of shared memory filled STAGES - 1 ahead. The 16-byte pieces of a line are stored in the order
// p ^ (row % 8), so that neither the copies nor ldmatrix, which takes the same piece of 8 rows, meet in a bank. There is one
// barrier per step: it shows a stage's bytes to everybody, and that everybody is done with the stage filled next.
//
// Per step 128 x 128 moves 32 KB for 2 * 128 * 128 * 64 operations: 64 per byte, which level 2 of an A100 can feed. 64 x 64 has half of
// that and is for results of few tiles, where idle multiprocessors cost more. Tiles of the same columns follow each other, so that W is read
// from memory once while x stays in level 2. Each output is one chain of k16 steps in order, whatever the tile.
//
// Gated: of a warp's 32 rows of W the first 16 are gate rows, the others the up rows that belong to them: a thread holds both.
#include "products.cuh"

namespace {

using products::Span;

constexpr uint32_t STEP = 64, LINE_BYTES = STEP * 2, PIECES = LINE_BYTES / 16;

// Bytes from the start of a tile to a piece of a line.
DEVICE_INLINE uint32_t place(uint32_t row, uint32_t piece) { return row * LINE_BYTES + ((piece ^ (row % 8)) * 16); }

// Row of W behind row r of the tile of columns `tile`; beyond W the last one, of which nothing is written.
template <uint32_t BN>
DEVICE_INLINE uint32_t row_of_w(const ProductArgs& a, uint32_t tile, uint32_t r) {
    if (a.epilogue != EPILOGUE_GATED) return min(tile * BN + r, a.n - 1);
    const uint32_t gate = min(tile * (BN / 2) + r / 32 * 16 + r % 16, a.n / 2 - 1);
    return r % 32 < 16 ? gate : gate + a.n / 2;
}

// The lines of one operand that this thread copies: piece threadIdx.x % 8 of every (THREADS / 8)th row of the tile.
template <class T, uint32_t ROWS, uint32_t THREADS>
struct Lines {
    static constexpr uint32_t STRIDE = THREADS / PIECES, COUNT = ROWS / STRIDE;
    const T* row[COUNT];

    // Enqueues the copies of columns [step * 64, step * 64 + 64) to a tile; zeros beyond k.
    DEVICE_INLINE void copy(unsigned char* tile, uint32_t step, uint32_t k) const {
        const uint32_t piece = threadIdx.x % PIECES, column = step * STEP + piece * 8;
        const bool valid = column < k;
#pragma unroll
        for (uint32_t i = 0; i < COUNT; i++)
            dev::cp_async16(tile + place(threadIdx.x / PIECES + i * STRIDE, piece), row[i] + (valid ? column : 0), valid);
    }
};

// acc [MT * 16, 32] += x tile [.., 64] W tile [.., 64]^T of one stage; `x` and `w` are the warp's first rows.
template <class T, int MT>
DEVICE_INLINE void multiply(float (&acc)[MT][4][4], const unsigned char* x, const unsigned char* w) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t kk = 0; kk < STEP / 16; kk++) {
        uint32_t b[2][4];
#pragma unroll
        for (uint32_t j = 0; j < 2; j++)
            dev::ldmatrix_x4(b[j], w + place(j * 16 + lane / 16 * 8 + lane % 8, kk * 2 + lane / 8 % 2));
#pragma unroll
        for (uint32_t i = 0; i < MT; i++) {
            uint32_t rows[4];
            dev::ldmatrix_x4(rows, x + place(i * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                const uint32_t columns[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                dev::mma_16816<T>(acc[i][j], rows, columns);
            }
        }
    }
}

// Writes a warp's accumulators: row `row` of the group, column `column` of the result onwards.
template <class T, int MT>
DEVICE_INLINE void write(const ProductArgs& a, const Span& span, const float (&acc)[MT][4][4], uint32_t row, uint32_t column) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (uint32_t i = 0; i < MT; i++) {
#pragma unroll
        for (uint32_t lower = 0; lower < 2; lower++) {
            const uint32_t r = row + i * 16 + lower * 8 + g, c = lower * 2;
            if (a.epilogue == EPILOGUE_GATED) {
#pragma unroll
                for (uint32_t j = 0; j < 2; j++) {
                    const float* const gate = acc[i][j] + c;
                    const float* const up = acc[i][j + 2] + c;
                    products::write_pair<T>(a, span, r, column + j * 8 + t * 2, products::silu(gate[0]) * up[0], products::silu(gate[1]) * up[1]);
                }
            } else {
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    products::write_pair<T>(a, span, r, column + j * 8 + t * 2, acc[i][j][c], acc[i][j][c + 1]);
            }
        }
    }
}

template <class T, uint32_t BM, uint32_t BN, uint32_t STAGES>
DEVICE_INLINE void gemm(const ProductArgs& a) {
    constexpr uint32_t WARPS_N = BN / 32, WARPS = 2 * WARPS_N, THREADS = WARPS * 32;
    constexpr int MT = BM / 32;
    DYNAMIC_SHARED(dynamic);
    dev::Carver carver(dynamic);
    unsigned char* const xs = carver.take<unsigned char>(STAGES * BM * LINE_BYTES, 128);   // [stage, row of x, piece]
    unsigned char* const ws = carver.take<unsigned char>(STAGES * BN * LINE_BYTES, 128);   // [stage, row of W, piece]

    const uint32_t row_tiles = (a.bucket + BM - 1) / BM, steps = (a.k + STEP - 1) / STEP;
    const uint32_t row = blockIdx.x % row_tiles * BM, tile = blockIdx.x / row_tiles;
    Lines<T, BN, THREADS> w;
#pragma unroll
    for (uint32_t i = 0; i < w.COUNT; i++)
        w.row[i] = static_cast<const T*>(a.w) + size_t(row_of_w<BN>(a, tile, threadIdx.x / PIECES + i * w.STRIDE)) * a.k;
    // Nothing writes weights: they belong to the first group of copies, and are on their way before the previous launch is done.
#pragma unroll
    for (uint32_t s = 0; s < STAGES - 1; s++) w.copy(ws + s * BN * LINE_BYTES, s, a.k);
    dev::dependency_trigger();
    dev::dependency_wait();

    const Span span = products::span_of(a);
    if (row >= span.rows) {
        dev::cp_async_wait<0>();   // the copies of W write to memory that the next block may be given
        return;
    }
    Lines<T, BM, THREADS> x;
#pragma unroll
    for (uint32_t i = 0; i < x.COUNT; i++) {
        // Rows beyond the group repeat its last one; nothing of them is written.
        const uint32_t r = min(row + threadIdx.x / PIECES + i * x.STRIDE, span.rows - 1);
        x.row[i] = static_cast<const T*>(a.x) + size_t(span.first + r) * a.k;
    }
#pragma unroll
    for (uint32_t s = 0; s < STAGES - 1; s++) {
        x.copy(xs + s * BM * LINE_BYTES, s, a.k);
        dev::cp_async_commit();
    }

    const uint32_t warp = threadIdx.x / 32, wm = warp / WARPS_N * (BM / 2), wn = warp % WARPS_N * 32;
    float acc[MT][4][4] = {};
    uint32_t stage = 0, fill = STAGES - 1;   // stage used and stage filled by this step
    for (uint32_t step = 0; step < steps; step++) {
        dev::cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            x.copy(xs + fill * BM * LINE_BYTES, step + STAGES - 1, a.k);
            w.copy(ws + fill * BN * LINE_BYTES, step + STAGES - 1, a.k);
        }
        dev::cp_async_commit();
        multiply<T>(acc, xs + (stage * BM + wm) * LINE_BYTES, ws + (stage * BN + wn) * LINE_BYTES);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        fill = fill + 1 == STAGES ? 0 : fill + 1;
    }
    const bool gated = a.epilogue == EPILOGUE_GATED;
    write<T, MT>(a, span, acc, row + wm, gated ? tile * (BN / 2) + wn / 2 : tile * BN + wn);
}

}  // namespace

KERNEL(gemm_128x128_bf16, ProductArgs, 256, 2) { gemm<bf16, 128, 128, 3>(a); }
KERNEL(gemm_128x128_f16, ProductArgs, 256, 2) { gemm<f16, 128, 128, 3>(a); }
KERNEL(gemm_64x64_bf16, ProductArgs, 128, 3) { gemm<bf16, 64, 64, 4>(a); }
KERNEL(gemm_64x64_f16, ProductArgs, 128, 3) { gemm<f16, 64, 64, 4>(a); }
