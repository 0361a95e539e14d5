// What the device can do at most, measured: `doctor` shows it, and benches print their share of it.
//
// read_ceiling: out [blocks] = xor of all words that a block reads of data [vectors, 4]. Nothing but loads: each block takes tiles of
// 256 threads x 8 vectors of 16 bytes, all eight of a thread in flight before the first is used. 4 blocks of a multiprocessor hold
// 1024 x 128 bytes = 128 KiB of requests, three times what 4.8 TB/s at a microsecond of latency keep busy; more blocks would leave a thread too
// few registers for its eight.
//
// matrix_ceiling_bf16: out [blocks, 256] = a sum of every accumulator of a thread, after `rounds` products of 16 x 16 by 16 x 64 in each
// warp (mma.m16n8k16 from registers, eight accumulator tiles, so that each waits for the one eight before it). The elements of both factors are
// +-[1, 2) with the bits of `mask` drawn from a hash: matrix units are slower on random data than on equal numbers. With mask 0 every
// element is 1 and every accumulator ends as 16 x rounds.
//
// matrix_ceiling_wgmma_bf16, sm_90a: the same of warpgroup products, which are half as fast again there. In each round each of two warpgroups
// multiplies its 64 x 64 by one 64 x 256, both in shared memory, and nothing waits before the last round: 2 x 64 x 256 x 64
// multiplications of a block. With mask 0 every accumulator ends as 64 x rounds.
#include "args.cuh"
#include "device.cuh"
#include "hopper.cuh"

struct ReadCeilingArgs {
    const void* data;     // [vectors, 4] words
    uint32_t* out;        // [blocks]
    uint64_t vectors;
    uint64_t reserved;
};
ARGS_SIZE(ReadCeilingArgs, 32);

struct MatrixCeilingArgs {
    float* out;           // [blocks, 256]
    uint32_t rounds;
    uint32_t mask;        // of a pair of elements: 0x807f807f draws signs and mantissas
};
ARGS_SIZE(MatrixCeilingArgs, 16);

namespace {

constexpr uint32_t THREADS = 256;
constexpr uint32_t IN_FLIGHT = 8;

__device__ void read_body(const ReadCeilingArgs& a) {
    const uint4* const data = static_cast<const uint4*>(a.data);
    const uint64_t tile = uint64_t(THREADS) * IN_FLIGHT;
    dev::dependency_wait();
    uint32_t sum = 0;
    for (uint64_t first = blockIdx.x * tile; first < a.vectors; first += gridDim.x * tile) {
        uint4 loaded[IN_FLIGHT];
#pragma unroll
        for (uint32_t i = 0; i < IN_FLIGHT; i++) {
            const uint64_t at = first + i * THREADS + threadIdx.x;
            loaded[i] = at < a.vectors ? dev::load16_stream(data + at) : uint4{0, 0, 0, 0};
        }
#pragma unroll
        for (uint32_t i = 0; i < IN_FLIGHT; i++) sum ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
    }
    SHARED(uint32_t, of_warp, THREADS / 32);
    for (uint32_t bits = 16; bits > 0; bits /= 2) sum ^= __shfl_xor_sync(dev::FULL_MASK, sum, bits);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        sum = 0;
        for (uint32_t warp = 0; warp < THREADS / 32; warp++) sum ^= of_warp[warp];
        a.out[blockIdx.x] = sum;
    }
}

// Two elements: 1 each, with the bits of the mask drawn.
__device__ uint32_t pair(uint32_t seed, uint32_t mask) {
    uint32_t x = seed * 0x9e3779b9u + 0x7f4a7c15u;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return 0x3f803f80u ^ ((x ^ (x >> 16)) & mask);
}

template <class T>
__device__ void matrix_body(const MatrixCeilingArgs& a) {
    constexpr uint32_t TILES = 8;
    const uint32_t seed = (blockIdx.x * THREADS + threadIdx.x) * 32;
    uint32_t left[4], right[TILES][2];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) left[i] = pair(seed + i, a.mask);
#pragma unroll
    for (uint32_t i = 0; i < 2 * TILES; i++) right[i / 2][i % 2] = pair(seed + 4 + i, a.mask);
    float sums[TILES][4] = {};
    dev::dependency_wait();
    for (uint32_t round = 0; round < a.rounds; round++) {
#pragma unroll
        for (uint32_t tile = 0; tile < TILES; tile++) dev::mma_16816<T>(sums[tile], left, right[tile]);
    }
    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4 * TILES; i++) sum += sums[i / 4][i % 4];
    a.out[size_t(blockIdx.x) * THREADS + threadIdx.x] = sum;
}

template <class T>
__device__ void wgmma_body(const MatrixCeilingArgs& a) {
    constexpr uint32_t K = 64, ROWS = 64, COLUMNS = 256, GROUPS = THREADS / 128;
    DYNAMIC_SHARED(shared);
    dev::Carver carver(shared);
    uint32_t* const left = carver.take<uint32_t>(GROUPS * ROWS * K / 2, 1024);
    uint32_t* const right = carver.take<uint32_t>(COLUMNS * K / 2, 1024);
    // The order of elements is the swizzled one, which drawn values need not know.
    for (uint32_t i = threadIdx.x; i < GROUPS * ROWS * K / 2; i += THREADS) left[i] = pair(blockIdx.x * 16384 + i, a.mask);
    for (uint32_t i = threadIdx.x; i < COLUMNS * K / 2; i += THREADS) right[i] = pair(~(blockIdx.x * 16384 + i), a.mask);
    dev::fence_proxy_async();
    __syncthreads();
    dev::dependency_wait();
    const uint64_t rows = dev::tile_descriptor(left + threadIdx.x / 128 * (ROWS * K / 2));
    const uint64_t columns = dev::tile_descriptor(right);
    // Not set to zero, which would touch the registers behind a fence: the first product overwrites them.
    float sums[COLUMNS / 2];
    for (uint32_t round = 0; round < a.rounds; round++) {
        dev::wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < K / 16; k++) dev::wgmma<T, COLUMNS>(sums, rows + 2 * k, columns + 2 * k, round + k > 0);
        dev::wgmma_commit();
        dev::wgmma_wait<1>();
    }
    dev::wgmma_wait<0>();
    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < COLUMNS / 2; i++) sum += a.rounds > 0 ? sums[i] : 0.0f;
    a.out[size_t(blockIdx.x) * THREADS + threadIdx.x] = sum;
}

}  // namespace

KERNEL(read_ceiling, ReadCeilingArgs, 256, 4) { read_body(a); }
KERNEL(matrix_ceiling_bf16, MatrixCeilingArgs, 256, 2) { matrix_body<bf16>(a); }
KERNEL(matrix_ceiling_wgmma_bf16, MatrixCeilingArgs, 256, 1) { wgmma_body<bf16>(a); }
