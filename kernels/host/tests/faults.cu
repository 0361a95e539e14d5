// Kernels that are wrong, one mistake each: the emulated device has to name the mistake and the line marked with its number.
// They are compiled for the host alone.
#include "args.cuh"
#include "device.cuh"
#include "hopper.cuh"

namespace {

using namespace dev;

__device__ uint32_t* words(uint64_t address) { return reinterpret_cast<uint32_t*>(address); }

__device__ __noinline__ uint32_t deep(uint32_t n) {
  volatile uint32_t local[4096];
  local[n % 4096] = n;
  return n == 0 ? 0 : deep(n - 1) + local[n % 4096];
}

__device__ void synchronization(const CheckArgs& a) {
  SHARED(uint64_t, barrier, 1);
  const uint32_t t = threadIdx.x, lane = t % 32;
  switch (a.mode) {
    case 0:
      if (lane < 16)
        __syncthreads();
      else
        __syncthreads();  // mistake 0
      break;
    case 1:
      if (t < 32) barrier_sync(1, 64);  // mistake 1
      break;
    case 2:
      if (lane < 16)
        __shfl_sync(FULL_MASK, t, 0);  // mistake 2
      else
        __syncthreads();
      break;
    case 3:
      if (lane >= 8 || __any_sync(0xffu, 0)) __shfl_sync(FULL_MASK, t, 0);  // mistake 3
      break;
    case 4:
      if (lane == 4) __syncwarp(0xfu);  // mistake 4
      break;
    case 5:
      if (lane < 16)
        __ballot_sync(FULL_MASK, 1);
      else
        __shfl_sync(FULL_MASK, t, 0);  // mistake 5
      break;
    case 6:
      if (t == 0) mbarrier_init(barrier, 8);
      __syncthreads();
      if (t == 0) mbarrier_arrive_expect(barrier, 64);  // of which none will land
      __syncthreads();
      if (t < 8) mbarrier_arrive(barrier);  // mistake 6
      break;
    case 7:
      mbarrier_wait(barrier, 0);  // mistake 7
      break;
    case 8:
      wait_at_least(words(a.in), 1);  // mistake 8
      break;
    case 9:
      if (t == 0) mbarrier_init(barrier, 1);
      __syncthreads();
      mbarrier_wait(barrier, 0);  // mistake 9
      break;
    case 10:
      if (t < 32)
        barrier_sync(1, 64);
      else
        barrier_sync(1, 96);  // mistake 10
      break;
  }
}

__device__ void memory(const CheckArgs& a) {
  SHARED(uint32_t, small, 8);  // mistake 24
  uint32_t* const in = words(a.in);
  uint32_t* const out = words(a.out);
  const uint32_t t = threadIdx.x;
  switch (a.mode) {
    case 20:
      store16(out, load16(in + t));  // mistake 20
      break;
    case 21:
      out[t] = in[a.n + t];
      break;
    case 22:
      in[-1] = t;
      break;
    case 23:
      *words(a.mode - 23) = t;
      break;
    case 24:
      small[t % 9] = t;
      break;
    case 25: {
      DYNAMIC_SHARED(base);
      Carver carver(base);
      uint32_t* const first = carver.take<uint32_t>(6);  // mistake 25
      uint32_t* const second = carver.take<uint32_t>(32);
      first[t % 7] = t;
      second[t % 32] = t;
      break;
    }
    case 26: {
      DYNAMIC_SHARED(base);
      Carver carver(base);
      carver.take<uint32_t>(1 << 14);  // mistake 26
      break;
    }
    case 27: {
      DYNAMIC_SHARED(base);
      Carver carver(base);
      carver.take<uint32_t>(t < 32 ? 4 : 5);  // mistake 27
      break;
    }
    case 28: {
      DYNAMIC_SHARED(base);
      base[blockDim.x] = 1;  // one past what the launch gave
      break;
    }
    case 29:
      cp_async16(out, in);  // mistake 29
      break;
    case 30:
      out[t] = deep(100);
      break;
    case 31:
      out[t] = 7 / in[t];
      break;
    case 32:
      *reinterpret_cast<uint32_t*>(0xffffffffffffffffull) = t;
      break;
    case 33:
      if (a.out2) reinterpret_cast<unsigned char*>(a.out2)[a.n] = 1;
      break;
    case 34:
      if (a.n == 0 && t == 5) out[t] = t;
      return;  // without dependency_wait
  }
}

// out [64] = in [64] the other way round, through shared memory. What is missing shows in some order, or in late copies.
template <bool Barrier, bool Wait>
__device__ void turn_round(const CheckArgs& a) {
  SHARED(uint32_t, tile, 64);
  const uint32_t t = threadIdx.x;
  cp_async4(&tile[t], words(a.in) + t);
  cp_async_commit();
  if constexpr (Wait) cp_async_wait<0>();
  if constexpr (Barrier) __syncthreads();
  words(a.out)[t] = tile[63 - t];
}

}  // namespace

KERNEL(fault_synchronization, CheckArgs, 64, 1) { synchronization(a); }
KERNEL(fault_memory, CheckArgs, 64, 1) { memory(a); }
KERNEL(fault_none, CheckArgs, 64, 1) { turn_round<true, true>(a); }
KERNEL(fault_no_barrier, CheckArgs, 64, 1) { turn_round<false, true>(a); }
KERNEL(fault_no_wait, CheckArgs, 64, 1) { turn_round<true, false>(a); }
