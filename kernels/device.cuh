// The layer below every kernel: entries, shared memory, element types, and each piece of PTX that sm_80 and later have in common.
// Each wrapper has a device body and a host body, so that the same kernel source runs on a GPU and on a CPU.
//
// Shared memory: SHARED(T, name, N) declares a static array, DYNAMIC_SHARED(name) names the dynamic part, 1024-aligned. Carve it
// with one Carver per kernel, alike in every thread. On the host red zones lie between its arrays and shared memory begins as NaN.
// Addresses handed to a wrapper that moves 16 bytes are multiples of 16; the host checks it.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define KERNEL(name, Args, max_threads, min_blocks)                                          \
  static_assert(sizeof(Args) % 16 == 0 && (max_threads) % 32 == 0 && (max_threads) <= 1024); \
  extern "C" __global__ void __launch_bounds__(max_threads, min_blocks) name(const __grid_constant__ Args a)
extern __shared__ __align__(1024) unsigned char sidereal_dynamic_shared[];
#define DYNAMIC_SHARED(name) unsigned char* const name = sidereal_dynamic_shared
#define SHARED(T, name, N) __shared__ __align__(16) T name[N]
// A wrapper's last parameter on the host: the place that called it.
#define SIDEREAL_PLACE
#define SIDEREAL_PLACE_ONLY
#else
#include "host/runtime.h"

#define KERNEL(name, Args, max_threads, min_blocks)                                                                     \
  static_assert(sizeof(Args) % 16 == 0 && (max_threads) % 32 == 0 && (max_threads) <= 1024);                            \
  static void entry_##name(const Args& a);                                                                              \
  extern const ::host::Kernel host_##name;                                                                              \
  const ::host::Kernel host_##name{                                                                                     \
      #name, max_threads, sizeof(Args), [](const void* args) { entry_##name(*static_cast<const Args*>(args)); }, __FILE__, __LINE__}; \
  static void entry_##name([[maybe_unused]] const Args& a)
#define DYNAMIC_SHARED(name) unsigned char* const name = ::host::current->block->dynamic
#define SHARED(T, name, N)             \
  static const char name##_identity{}; \
  auto& name = *static_cast<T(*)[N]>(::host::shared_array(&name##_identity, sizeof(T[N]), alignof(T), ::host::here()))
#define SIDEREAL_PLACE , ::host::Place place = ::host::here()
#define SIDEREAL_PLACE_ONLY ::host::Place place = ::host::here()
#endif

#define DEVICE_INLINE __device__ __forceinline__

using bf16 = __nv_bfloat16;
using f16 = __half;

// ---- element types

DEVICE_INLINE float to_float(float x) { return x; }
DEVICE_INLINE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE_INLINE float to_float(f16 x) { return __half2float(x); }

// Rounds to nearest even; a NaN stays one.
template <class T>
DEVICE_INLINE T from_float(float x);
template <>
DEVICE_INLINE float from_float<float>(float x) {
  return x;
}
template <>
DEVICE_INLINE bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
DEVICE_INLINE f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}

namespace dev {

inline constexpr unsigned FULL_MASK = 0xffffffffu;

template <class T, class U>
inline constexpr bool is_same = false;
template <class T>
inline constexpr bool is_same<T, T> = true;

// Carves dynamic shared memory into arrays. What it takes on the device is the sum of the sizes, each start rounded up to its
// alignment; red zones on the host are not counted.
class Carver {
 public:
  DEVICE_INLINE explicit Carver(unsigned char* base) : base_(base) {}

  template <class T>
  DEVICE_INLINE T* take(size_t count, size_t align = 16 SIDEREAL_PLACE) {
#ifdef __CUDACC__
    used_ = uint32_t((used_ + align - 1) / align * align);
    T* const array = reinterpret_cast<T*>(base_ + used_);
    used_ += uint32_t(count * sizeof(T));
    return array;
#else
    return static_cast<T*>(host::carve(used_, actual_, count * sizeof(T), align, place));
#endif
  }
  // Bytes of dynamic shared memory that the launch must ask for.
  DEVICE_INLINE uint32_t used() const { return used_; }

 private:
  unsigned char* base_;
  uint32_t used_ = 0;
#ifndef __CUDACC__
  uint32_t actual_ = 0;  // offset on the host, red zones included
#endif
};

// Address in the shared window, as PTX and matrix descriptors take it.
DEVICE_INLINE uint32_t shared_address(const void* pointer SIDEREAL_PLACE) {
#ifdef __CUDACC__
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
#else
  return host::shared_address(pointer, place);
#endif
}

// ---- global memory

DEVICE_INLINE uint4 load16(const void* from SIDEREAL_PLACE) {
#ifndef __CUDACC__
  host::check_aligned(from, 16, "16-byte load", place);
#endif
  return *static_cast<const uint4*>(from);
}

// For data read once, weights above all: keeps out of the first-level cache.
DEVICE_INLINE uint4 load16_stream(const void* from SIDEREAL_PLACE) {
#ifdef __CUDACC__
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
#else
  return load16(from, place);
#endif
}

DEVICE_INLINE void store16(void* to, uint4 value SIDEREAL_PLACE) {
#ifndef __CUDACC__
  host::check_aligned(to, 16, "16-byte store", place);
#endif
  *static_cast<uint4*>(to) = value;
}

DEVICE_INLINE void prefetch_l2([[maybe_unused]] const void* from) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

// Eight 2-byte elements, moved as one.
template <class T>
struct Vec8 {
  static_assert(sizeof(T) == 2);
  uint4 raw;

  static DEVICE_INLINE Vec8 load(const T* from SIDEREAL_PLACE) {
#ifdef __CUDACC__
    return {load16(from)};
#else
    return {load16(from, place)};
#endif
  }
  static DEVICE_INLINE Vec8 load_stream(const T* from SIDEREAL_PLACE) {
#ifdef __CUDACC__
    return {load16_stream(from)};
#else
    return {load16(from, place)};
#endif
  }
  static DEVICE_INLINE Vec8 zero() { return {make_uint4(0, 0, 0, 0)}; }
  static DEVICE_INLINE Vec8 rounded(const float (&x)[8]) {
    Vec8 v;
    T* const element = reinterpret_cast<T*>(&v.raw);
#pragma unroll
    for (int i = 0; i < 8; i++) element[i] = from_float<T>(x[i]);
    return v;
  }
  DEVICE_INLINE void store(T* to SIDEREAL_PLACE) const {
#ifdef __CUDACC__
    store16(to, raw);
#else
    store16(to, raw, place);
#endif
  }
  DEVICE_INLINE void to_floats(float (&x)[8]) const {
    const T* const element = reinterpret_cast<const T*>(&raw);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = to_float(element[i]);
  }
};

// Two elements in a word, the first in the low half, as `mma` takes them.
template <class T>
DEVICE_INLINE uint32_t pack2(float low, float high) {
#ifdef __CUDACC__
  if constexpr (is_same<T, bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
#else
  return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
#endif
}
template <class T>
DEVICE_INLINE float2 unpack2(uint32_t word) {
  const T* const pair = reinterpret_cast<const T*>(&word);
  return make_float2(to_float(pair[0]), to_float(pair[1]));
}

// ---- arithmetic

// 2^x, log2 x, 1 / x, 1 / sqrt x by the special function unit; exact to a last place or two on the host.
DEVICE_INLINE float exp2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
DEVICE_INLINE float log2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return log2f(x);
#endif
}
DEVICE_INLINE float rcp_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}
DEVICE_INLINE float rsqrt_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return rsqrtf(x);
#endif
}
// Rounded to nearest even and never fused, for code that must agree with scalar code bit for bit.
DEVICE_INLINE float mul_rn(float x, float y) { return __fmul_rn(x, y); }
DEVICE_INLINE float add_rn(float x, float y) { return __fadd_rn(x, y); }
DEVICE_INLINE float sub_rn(float x, float y) { return __fsub_rn(x, y); }
DEVICE_INLINE float div_rn(float x, float y) { return __fdiv_rn(x, y); }
DEVICE_INLINE float sqrt_rn(float x) { return __fsqrt_rn(x); }
// x * y + z, rounded once.
DEVICE_INLINE float fma_rn(float x, float y, float z) { return __fmaf_rn(x, y, z); }

// ---- asynchronous copies from global to shared memory (sm_80)

// Copies 16 bytes, or writes 16 zeros when `valid` is false (`from` is then not read, but must be a pointer into some buffer).
DEVICE_INLINE void cp_async16(void* to, const void* from, bool valid = true SIDEREAL_PLACE) {
#ifdef __CUDACC__
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
#else
  host::cp_async(to, from, 16, valid ? 16 : 0, place);
#endif
}
// The same for 4 bytes.
DEVICE_INLINE void cp_async4(void* to, const void* from, bool valid = true SIDEREAL_PLACE) {
#ifdef __CUDACC__
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
#else
  host::cp_async(to, from, 4, valid ? 4 : 0, place);
#endif
}
// Closes this thread's open group of copies.
DEVICE_INLINE void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  host::cp_async_commit();
#endif
}
// Waits until at most the N newest groups of this thread are under way. Other threads see the data after a barrier.
template <int N>
DEVICE_INLINE void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
  host::cp_async_wait(N);
#endif
}

// ---- matrix fragments (whole warps)

// Loads four 8 x 8 matrices of 2-byte elements; lane i gives the address of row i % 8 of matrix i / 8 (16 bytes).
// Register m of lane i receives elements 2 (i % 4) and 2 (i % 4) + 1 of row i / 4 of matrix m.
DEVICE_INLINE void ldmatrix_x4(uint32_t (&r)[4], const void* row SIDEREAL_PLACE) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  host::ldmatrix(r, 4, false, row, place);
#endif
}
// The same, each matrix transposed.
DEVICE_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row SIDEREAL_PLACE) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#else
  host::ldmatrix(r, 4, true, row, place);
#endif
}
// Two matrices; lanes 0 to 15 give the rows, the others any valid row.
DEVICE_INLINE void ldmatrix_x2(uint32_t (&r)[2], const void* row SIDEREAL_PLACE) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#else
  host::ldmatrix(r, 2, false, row, place);
#endif
}
DEVICE_INLINE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row SIDEREAL_PLACE) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
#else
  host::ldmatrix(r, 2, true, row, place);
#endif
}

// d [16, 8] += a [16, 16] b [16, 8], float sums. With g = lane / 4, t = lane % 4: a holds rows g and g + 8 (registers 0, 2 and 1, 3)
// at columns 2t (0, 1) and 2t + 8 (2, 3); b holds column g at rows 2t and 2t + 8; d holds rows g (0, 1) and g + 8 (2, 3) at columns 2t, 2t + 1.
template <class T>
DEVICE_INLINE void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SIDEREAL_PLACE);
#ifdef __CUDACC__
#define SIDEREAL_MMA(T, ptx)                                                                                     \
  template <>                                                                                                    \
  DEVICE_INLINE void mma_16816<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {               \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." ptx "." ptx                                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                          \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                            \
  }
SIDEREAL_MMA(bf16, "bf16")
SIDEREAL_MMA(f16, "f16")
#undef SIDEREAL_MMA
#else
template <>
inline void mma_16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], host::Place place) {
  host::mma_16816(d, a, b, true, place);
}
template <>
inline void mma_16816<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], host::Place place) {
  host::mma_16816(d, a, b, false, place);
}
#endif

// ---- barriers of a part of a block: `id` 1 to 15, `threads` a multiple of 32

DEVICE_INLINE void barrier_sync(uint32_t id, uint32_t threads SIDEREAL_PLACE) {
#ifdef __CUDACC__
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  host::barrier(id, threads, host::Fold::None, 0, place);
#endif
}
DEVICE_INLINE void barrier_arrive(uint32_t id, uint32_t threads SIDEREAL_PLACE) {
#ifdef __CUDACC__
  asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  host::barrier_arrive(id, threads, place);
#endif
}

// ---- flags between blocks

DEVICE_INLINE uint32_t load_acquire(const uint32_t* flag) {
#ifdef __CUDACC__
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
#else
  return host::load_acquire(flag);
#endif
}
DEVICE_INLINE void store_release(uint32_t* flag, uint32_t value) {
#ifdef __CUDACC__
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
#else
  host::store_release(flag, value);
#endif
}
// Adds and returns what was there; everything this thread did is visible to whoever acquires the sum.
DEVICE_INLINE uint32_t add_release(uint32_t* flag, uint32_t value) {
#ifdef __CUDACC__
  uint32_t v;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(v) : "l"(flag), "r"(value) : "memory");
  return v;
#else
  return host::add_release(flag, value);
#endif
}
// To be called in every loop that polls memory: on the host, lets the others go on.
DEVICE_INLINE void spin_pause(SIDEREAL_PLACE_ONLY) {
#ifndef __CUDACC__
  host::yield(place);
#endif
}
// Polls until the flag, which only grows, has reached `value`.
DEVICE_INLINE void wait_at_least(const uint32_t* flag, uint32_t value SIDEREAL_PLACE) {
#ifdef __CUDACC__
  while (load_acquire(flag) < value) {}
#else
  while (host::load_acquire(flag) < value) host::yield(place);
#endif
}

// ---- programmatic dependent launch: nothing before sm_90

// Waits until the launches before this one are done and visible. Every thread of a launch marked dependent calls it.
DEVICE_INLINE void dependency_wait() {
#ifdef __CUDACC__
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  host::dependency_wait();
#endif
}
// The next launch, where marked dependent, may start its blocks.
DEVICE_INLINE void dependency_trigger() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace dev
