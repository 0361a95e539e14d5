// Checks of the wrappers in device.cuh and hopper.cuh: each kernel does with one of them what a plain loop can repeat, on small
// integers, whose sums are exact. They run on every driver; on a GPU they show that the layouts written down here are the hardware's.
#include "args.cuh"
#include "device.cuh"
#include "hopper.cuh"

namespace {

using namespace dev;

template <class T>
__device__ const T* at(uint64_t address) {
  return reinterpret_cast<const T*>(address);
}
template <class T>
__device__ T* mutable_at(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// Every path between float and a 2-byte type: in float [n] -> out uint16 [n] and float [n].
template <class T>
__device__ void convert(const CheckArgs& a) {
  dependency_wait();
  const float* const in = at<float>(a.in);
  T* const narrow = mutable_at<T>(a.out);
  float* const back = mutable_at<float>(a.out2);
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < a.n; i += size_t(gridDim.x) * blockDim.x) {
    narrow[i] = from_float<T>(in[i]);
    back[i] = to_float(narrow[i]);
  }
}

// out [16, 8] = a [16, 16] b^T, b [8, 16], staged with cp.async and loaded with ldmatrix. mode 1: b is [16, 8] and loaded transposed.
template <class T>
__device__ void one_mma(const CheckArgs& a) {
  dependency_wait();
  SHARED(T, tile_a, 16 * 16);
  SHARED(T, tile_b, 16 * 8);
  const uint32_t lane = threadIdx.x;
  cp_async16(&tile_a[lane * 8], at<T>(a.in) + lane * 8);
  if (lane < 16) cp_async16(&tile_b[lane * 8], at<T>(a.in2) + lane * 8);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  ldmatrix_x4(fragment_a, &tile_a[(lane % 16) * 16 + (lane / 16) * 8]);
  if (a.mode == 1)
    ldmatrix_x2_trans(fragment_b, &tile_b[(lane % 16) * 8]);
  else
    ldmatrix_x2(fragment_b, &tile_b[(lane % 8) * 16 + (lane / 8 % 2) * 8]);
  float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  mma_16816<T>(d, fragment_a, fragment_b);
  float* const out = mutable_at<float>(a.out);
  const uint32_t g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) out[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

// Every warp collective once: out uint32 [WORDS, 32] from in uint32 [32].
__device__ void collectives(const CheckArgs& a) {
  dependency_wait();
  const uint32_t lane = threadIdx.x, x = at<uint32_t>(a.in)[lane];
  uint32_t* const out = mutable_at<uint32_t>(a.out) + lane;
  out[0 * 32] = __shfl_sync(FULL_MASK, x, 5);
  out[1 * 32] = __shfl_xor_sync(FULL_MASK, x, 3);
  out[2 * 32] = __shfl_up_sync(FULL_MASK, x, 2);
  out[3 * 32] = __shfl_down_sync(FULL_MASK, x, 4);
  out[4 * 32] = __shfl_down_sync(FULL_MASK, x, 3, 8);
  out[5 * 32] = __ballot_sync(FULL_MASK, x & 1);
  out[6 * 32] = __reduce_add_sync(FULL_MASK, x);
  out[7 * 32] = __reduce_max_sync(FULL_MASK, x);
  out[8 * 32] = __reduce_min_sync(FULL_MASK, x);
  out[9 * 32] = __match_any_sync(FULL_MASK, x % 5);
  out[10 * 32] = uint32_t(__any_sync(FULL_MASK, x == 7)) + 2 * uint32_t(__all_sync(FULL_MASK, x < 100));
  out[11 * 32] = lane < 10 ? __reduce_add_sync(0x3ffu, x) : __reduce_or_sync(~0x3ffu, x);
  out[12 * 32] = uint32_t(__popc(x)) | uint32_t(__clz(int(x))) << 8 | uint32_t(__ffs(int(x))) << 16;
  out[13 * 32] = __brev(x) ^ __umulhi(x * 0x9e3779b9u, 0x85ebca6bu);
}

// A grid barrier, twice: out uint32 [blocks] = the sum over all blocks of (block + 1), added in the second phase.
// in2 uint32 [2] are counters, zero at the start; out2 uint32 [blocks] is scratch.
__device__ void grid_barrier(const CheckArgs& a) {
  dependency_wait();
  uint32_t* const counters = mutable_at<uint32_t>(a.in2);
  uint32_t* const scratch = mutable_at<uint32_t>(a.out2);
  if (threadIdx.x == 0) scratch[blockIdx.x] = blockIdx.x + 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    add_release(&counters[0], 1);
    wait_at_least(&counters[0], gridDim.x);
  }
  __syncthreads();
  uint32_t sum = 0;
  for (uint32_t b = threadIdx.x; b < gridDim.x; b += 32) sum += load_acquire(&scratch[b]);
  sum = __reduce_add_sync(FULL_MASK, sum);
  if (threadIdx.x == 0) mutable_at<uint32_t>(a.out)[blockIdx.x] = sum;
}

// Two warps hand numbers over through named barriers: out uint32 [n] = in [n] + 1, a chunk of 32 at a time.
__device__ void hand_over(const CheckArgs& a) {
  dependency_wait();
  SHARED(uint32_t, chunk, 32);
  constexpr uint32_t FULL = 1, EMPTY = 2;
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t i = lane; i < a.n; i += 32) {
    if (threadIdx.x < 32) {
      if (i >= 32) barrier_sync(EMPTY, 64);
      chunk[lane] = at<uint32_t>(a.in)[i];
      barrier_arrive(FULL, 64);
    } else {
      barrier_sync(FULL, 64);
      mutable_at<uint32_t>(a.out)[i] = chunk[lane] + 1;
      if (i + 32 < a.n) barrier_arrive(EMPTY, 64);
    }
  }
}

constexpr int STAGES = 3, DEPTH = 64;

// out [64, N] = a [64, k] b [N, k]^T for any k: a ring of tiles, filled by one thread of a producer warp, emptied by one warpgroup.
template <class T, int N>
__device__ void ring_product(const CheckProductArgs& a) {
#if !defined(__CUDACC__) || defined(SIDEREAL_HOPPER)
  dependency_wait();
  DYNAMIC_SHARED(base);
  Carver carver(base);
  T* const tiles_a = carver.take<T>(STAGES * 64 * DEPTH, 1024);
  T* const tiles_b = carver.take<T>(STAGES * N * DEPTH, 1024);
  uint64_t* const full = carver.take<uint64_t>(STAGES);
  uint64_t* const empty = carver.take<uint64_t>(STAGES);
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 128);
    }
    mbarrier_fence_init();
  }
  __syncthreads();
  const uint32_t steps = (uint32_t(a.k) + DEPTH - 1) / DEPTH;
  if (threadIdx.x >= 128) {
    if (threadIdx.x / 32 != 4 || !elect_one()) return;
    for (uint32_t i = 0; i < steps; i++) {
      const uint32_t s = i % STAGES;
      mbarrier_wait(&empty[s], (i / STAGES & 1) ^ 1);
      mbarrier_arrive_expect(&full[s], (64 + N) * DEPTH * sizeof(T));
      tma_load_2d(tiles_a + s * 64 * DEPTH, &a.a, int(i * DEPTH), 0, &full[s]);
      tma_load_2d(tiles_b + s * N * DEPTH, &a.b, int(i * DEPTH), 0, &full[s]);
    }
    return;
  }
  float d[N / 2];
  for (uint32_t i = 0; i < steps; i++) {
    const uint32_t s = i % STAGES;
    mbarrier_wait(&full[s], i / STAGES & 1);
    const uint64_t da = tile_descriptor(tiles_a + s * 64 * DEPTH), db = tile_descriptor(tiles_b + s * N * DEPTH);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) wgmma<T, N>(d, da + k * 2, db + k * 2, i > 0 || k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    mbarrier_arrive(&empty[s]);
  }
  float* const out = mutable_at<float>(a.out);
  const uint32_t t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
#pragma unroll
  for (int i = 0; i < N / 2; i++) out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
#endif
}

// out [64, N] = 1 + a [64, 64] b [64, N]: a in registers, and b as a row of tiles whose rows are summed over.
template <class T, int N>
__device__ void values_product(const CheckProductArgs& a) {
#if !defined(__CUDACC__) || defined(SIDEREAL_HOPPER)
  dependency_wait();
  DYNAMIC_SHARED(base);
  Carver carver(base);
  T* const tile_a = carver.take<T>(64 * DEPTH, 1024);
  T* const tiles_b = carver.take<T>(N * DEPTH, 1024);
  uint64_t* const full = carver.take<uint64_t>(1);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(full, (64 + N) * DEPTH * sizeof(T));
    tma_load_2d(tile_a, &a.a, 0, 0, full);
    for (int h = 0; h < N / 64; h++) tma_load_2d(tiles_b + h * 64 * DEPTH, &a.b, h * 64, 0, full);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  const uint32_t t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
  uint32_t words[DEPTH / 16][4];
#pragma unroll
  for (uint32_t i = 0; i < DEPTH / 4; i++) {
    const uint32_t r = row + i % 2 * 8, chunk = i / 4 * 2 + i % 4 / 2;
    words[i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(tile_a + r * DEPTH + (chunk ^ r % 8) * 8 + column);
  }
  float d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; i++) d[i] = 1;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < DEPTH / 16; k++) wgmma_values<T, N>(d, words[k], tile_descriptor(tiles_b + k * 16 * 64, 64 * DEPTH * sizeof(T)));
  wgmma_commit();
  wgmma_wait<0>();
  float* const out = mutable_at<float>(a.out);
#pragma unroll
  for (int i = 0; i < N / 2; i++) out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
#endif
}

}  // namespace

KERNEL(check_convert_bf16, CheckArgs, 256, 1) { convert<bf16>(a); }
KERNEL(check_convert_f16, CheckArgs, 256, 1) { convert<f16>(a); }
KERNEL(check_mma_bf16, CheckArgs, 32, 1) { one_mma<bf16>(a); }
KERNEL(check_mma_f16, CheckArgs, 32, 1) { one_mma<f16>(a); }
KERNEL(check_collectives, CheckArgs, 32, 1) { collectives(a); }
KERNEL(check_grid_barrier, CheckArgs, 32, 1) { grid_barrier(a); }
KERNEL(check_hand_over, CheckArgs, 64, 1) { hand_over(a); }
KERNEL(check_wgmma_64_bf16, CheckProductArgs, 256, 1) { ring_product<bf16, 64>(a); }
KERNEL(check_wgmma_128_bf16, CheckProductArgs, 256, 1) { ring_product<bf16, 128>(a); }
KERNEL(check_wgmma_256_bf16, CheckProductArgs, 256, 1) { ring_product<bf16, 256>(a); }
KERNEL(check_wgmma_64_f16, CheckProductArgs, 256, 1) { ring_product<f16, 64>(a); }
KERNEL(check_wgmma_128_f16, CheckProductArgs, 256, 1) { ring_product<f16, 128>(a); }
KERNEL(check_wgmma_256_f16, CheckProductArgs, 256, 1) { ring_product<f16, 256>(a); }
KERNEL(check_values_64_bf16, CheckProductArgs, 128, 1) { values_product<bf16, 64>(a); }
KERNEL(check_values_128_bf16, CheckProductArgs, 128, 1) { values_product<bf16, 128>(a); }
KERNEL(check_values_64_f16, CheckProductArgs, 128, 1) { values_product<f16, 64>(a); }
KERNEL(check_values_128_f16, CheckProductArgs, 128, 1) { values_product<f16, 128>(a); }
