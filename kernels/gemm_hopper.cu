// out [rows, n] = x [rows, k] W [n, k]^T (+ bias) for many rows on sm_90a: bulk copies (TMA), mbarriers, wgmma.
//
// One producer thread streams tiles of 64 columns of k - BM rows of x, BN rows of W, 128-byte lines, 128-byte swizzle - through a ring of
// stages; two consumer warpgroups multiply. `full` of a stage counts the bytes that have landed, `empty` the consumer warps that are done with
// it. With BM = 128 a consumer takes 64 rows and all BN columns, with BM = 64 all rows and half of the columns. The grid is
// persistent: while the consumers write a result, the producer fills the ring for the next tile. Tiles of the same columns follow each
// other, so that W is read from memory once while x stays in level 2. The number of row tiles is read from the group: a bucket's bound
// costs nothing where the rows are fewer.
//
// Tiles (192 KB of stages each, one block per multiprocessor): 128 x 256 for results that fill the device with it: 85 operations per byte
// of level 2, wgmma reads shared memory at 80 of 128 bytes per cycle; 128 x 128 and 64 x 128 for less: 256 rows by 4096 columns are
// 128 tiles of 64 x 128. Columns of k, rows of x and of W beyond the end arrive as zeros. Each output is one chain of k16 steps in order.
//
// Gated: half of a consumer's columns are gate rows of W, the other half the up rows that belong to them: a thread holds both.
#include "hopper.cuh"
#include "products.cuh"

namespace {

using products::Span;

constexpr uint32_t STEP = 64, LINE_BYTES = STEP * 2, GROUP_THREADS = 128, CONSUMERS = 2, CONSUMER_WARPS = CONSUMERS * 4;

template <uint32_t BM, uint32_t BN>
struct Tile {
    static constexpr uint32_t STAGE_BYTES = (BM + BN) * LINE_BYTES;
    static constexpr uint32_t STAGES = 192 * 1024 / STAGE_BYTES;
    static constexpr uint32_t COLUMNS = BM == 128 ? BN : BN / 2;   // of a consumer
    unsigned char* stages;   // [stage]: x [BM, 64], W [BN, 64]
    uint64_t* full;
    uint64_t* empty;

    DEVICE_INLINE unsigned char* x(uint32_t stage) const { return stages + stage * STAGE_BYTES; }
    DEVICE_INLINE unsigned char* w(uint32_t stage) const { return x(stage) + BM * LINE_BYTES; }
};

// A place in the ring: a stage, and the parity of the phase of its barriers.
template <uint32_t STAGES>
struct Turn {
    uint32_t stage = 0, phase = 0;
    DEVICE_INLINE void advance() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// The work of all blocks: tiles of rows within tiles of columns.
struct Work {
    uint32_t row_tiles, tiles, steps;
};
template <uint32_t BM, uint32_t BN>
DEVICE_INLINE Work work_of(const ProductArgs& a, const Span& span) {
    const uint32_t columns = a.epilogue == EPILOGUE_GATED ? BN / 2 : BN, row_tiles = (span.rows + BM - 1) / BM;
    return {row_tiles, row_tiles * ((products::width_of(a) + columns - 1) / columns), (a.k + STEP - 1) / STEP};
}

// Copies the lines of W that a tile of columns needs, in boxes of a.w_box rows, in the order in which the consumers hold them.
template <uint32_t BM, uint32_t BN>
DEVICE_INLINE void load_w(const BulkProductArgs& a, unsigned char* to, uint64_t* barrier, uint32_t tile, uint32_t step) {
    const bool gated = a.product.epilogue == EPILOGUE_GATED;
    for (uint32_t r = 0; r < BN; r += a.w_box) {
        uint32_t row = tile * BN + r;
        if (gated) {   // [consumer's columns]: half of them gate, half up
            constexpr uint32_t COLUMNS = Tile<BM, BN>::COLUMNS, HALF = COLUMNS / 2;
            row = tile * (BN / 2) + r / COLUMNS * HALF + r % HALF + (r % COLUMNS < HALF ? 0 : a.product.n / 2);
        }
        dev::tma_load_2d(to + r * LINE_BYTES, &a.w_map, step * STEP, row, barrier);
    }
}

template <uint32_t BM, uint32_t BN>
DEVICE_INLINE void produce(const BulkProductArgs& a, const Tile<BM, BN>& ring, const Span& span, const Work& work) {
    Turn<Tile<BM, BN>::STAGES> turn;
    for (uint32_t tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
        const uint32_t row = span.first + tile % work.row_tiles * BM, column = tile / work.row_tiles;
        for (uint32_t step = 0; step < work.steps; step++, turn.advance()) {
            // The phase before the first counts as complete: the ring begins empty.
            dev::mbarrier_wait(&ring.empty[turn.stage], turn.phase ^ 1);
            uint64_t* const full = &ring.full[turn.stage];
            dev::mbarrier_arrive_expect(full, Tile<BM, BN>::STAGE_BYTES);
            for (uint32_t r = 0; r < BM; r += 64)
                dev::tma_load_2d(ring.x(turn.stage) + r * LINE_BYTES, &a.x_map, step * STEP, row + r, full);
            load_w<BM, BN>(a, ring.w(turn.stage), full, column, step);
        }
    }
}

// acc [64, COLUMNS] = x tile W tile^T over all of k.
template <class T, uint32_t BM, uint32_t BN>
DEVICE_INLINE void accumulate(float (&acc)[Tile<BM, BN>::COLUMNS / 2], const Tile<BM, BN>& ring, Turn<Tile<BM, BN>::STAGES>& turn,
                              uint32_t consumer, uint32_t steps) {
    constexpr uint32_t COLUMNS = Tile<BM, BN>::COLUMNS;
    const bool signals = threadIdx.x % 32 == 0;
    uint32_t before = 0;
    for (uint32_t step = 0; step < steps; step++, turn.advance()) {
        dev::mbarrier_wait(&ring.full[turn.stage], turn.phase);
        __syncwarp();   // lanes may leave the wait one by one, and what follows is for whole warps
        const uint64_t x = dev::tile_descriptor(ring.x(turn.stage) + (BM == 128 ? consumer * 64 * LINE_BYTES : 0));
        const uint64_t w = dev::tile_descriptor(ring.w(turn.stage) + (BM == 128 ? 0 : consumer * COLUMNS * LINE_BYTES));
        dev::wgmma_fence();
#pragma unroll
        for (uint32_t kk = 0; kk < STEP / 16; kk++)   // 16 columns are 32 bytes of the swizzled line
            dev::wgmma<T, COLUMNS>(acc, x + kk * 2, w + kk * 2, step + kk > 0);
        dev::wgmma_commit();
        // While this step's products run, the stage of the step before is given back.
        dev::wgmma_wait<1>();
        if (step > 0 && signals) dev::mbarrier_arrive(&ring.empty[before]);
        before = turn.stage;
    }
    dev::wgmma_wait<0>();
    if (signals) dev::mbarrier_arrive(&ring.empty[before]);
}

template <class T, uint32_t COLUMNS>
DEVICE_INLINE void write(const ProductArgs& a, const Span& span, const float (&acc)[COLUMNS / 2], uint32_t row, uint32_t column) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, r = row + threadIdx.x % GROUP_THREADS / 32 * 16 + g;
    if (a.epilogue == EPILOGUE_GATED) {
#pragma unroll
        for (uint32_t j = 0; j < COLUMNS / 16; j++) {
            const float* const gate = acc + j * 4;
            const float* const up = acc + (j + COLUMNS / 16) * 4;
#pragma unroll
            for (uint32_t lower = 0; lower < 2; lower++)
                products::write_pair<T>(a, span, r + lower * 8, column + j * 8 + t * 2, products::silu(gate[lower * 2]) * up[lower * 2],
                                        products::silu(gate[lower * 2 + 1]) * up[lower * 2 + 1]);
        }
    } else {
#pragma unroll
        for (uint32_t j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (uint32_t lower = 0; lower < 2; lower++)
                products::write_pair<T>(a, span, r + lower * 8, column + j * 8 + t * 2, acc[j * 4 + lower * 2], acc[j * 4 + lower * 2 + 1]);
    }
}

template <class T, uint32_t BM, uint32_t BN>
DEVICE_INLINE void consume(const ProductArgs& a, const Tile<BM, BN>& ring, const Span& span, const Work& work, uint32_t consumer) {
    constexpr uint32_t COLUMNS = Tile<BM, BN>::COLUMNS;
    const uint32_t share = a.epilogue == EPILOGUE_GATED ? 2 : 1;
    Turn<Tile<BM, BN>::STAGES> turn;
    for (uint32_t tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
        float acc[COLUMNS / 2];
        accumulate<T>(acc, ring, turn, consumer, work.steps);
        const uint32_t row = tile % work.row_tiles * BM, column = tile / work.row_tiles * (BN / share);
        if constexpr (BM == 128) write<T, COLUMNS>(a, span, acc, row + consumer * 64, column);
        else write<T, COLUMNS>(a, span, acc, row, column + consumer * (COLUMNS / share));
    }
}

template <class T, uint32_t BM, uint32_t BN>
DEVICE_INLINE void gemm(const BulkProductArgs& a) {
    using Ring = Tile<BM, BN>;
    DYNAMIC_SHARED(dynamic);
    SHARED(uint64_t, full, Ring::STAGES);
    SHARED(uint64_t, empty, Ring::STAGES);
    dev::Carver carver(dynamic);
    const Ring ring = {carver.take<unsigned char>(Ring::STAGES * Ring::STAGE_BYTES, 1024), full, empty};
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < Ring::STAGES; s++) {
            dev::mbarrier_init(&full[s], 1);
            dev::mbarrier_init(&empty[s], CONSUMER_WARPS);
        }
        dev::mbarrier_fence_init();
    }
    __syncthreads();
    dev::dependency_trigger();
    dev::dependency_wait();
    const Span span = products::span_of(a.product);
    const Work work = work_of<BM, BN>(a.product, span);
    const uint32_t group = threadIdx.x / GROUP_THREADS;
    if (group == CONSUMERS) {
        dev::registers_shrink<40>();
        if (threadIdx.x % GROUP_THREADS == 0) produce<BM, BN>(a, ring, span, work);
    } else {
        dev::registers_grow<232>();
        consume<T>(a.product, ring, span, work, group);
    }
}

}  // namespace

KERNEL(gemm_hopper_128x256_bf16, BulkProductArgs, 384, 1) { gemm<bf16, 128, 256>(a); }
KERNEL(gemm_hopper_128x256_f16, BulkProductArgs, 384, 1) { gemm<f16, 128, 256>(a); }
KERNEL(gemm_hopper_128x128_bf16, BulkProductArgs, 384, 1) { gemm<bf16, 128, 128>(a); }
KERNEL(gemm_hopper_128x128_f16, BulkProductArgs, 384, 1) { gemm<f16, 128, 128>(a); }
KERNEL(gemm_hopper_64x128_bf16, BulkProductArgs, 384, 1) { gemm<bf16, 64, 128>(a); }
KERNEL(gemm_hopper_64x128_f16, BulkProductArgs, 384, 1) { gemm<f16, 64, 128>(a); }
