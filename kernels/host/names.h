// CUDA's built-in names for a host compiler.
#pragma once
#include "runtime.h"

#define threadIdx (::host::current->index)
#define blockIdx (::host::current->block->index)
#define blockDim (::host::current->block->threads)
#define gridDim (::host::current->block->grid)
inline constexpr int warpSize = 32;

// ---- barriers and fences
inline void __syncthreads(host::Place place = host::here()) { host::barrier(0, 0, host::Fold::None, 0, place); }
inline int __syncthreads_or(int value, host::Place place = host::here()) {
  return int(host::barrier(0, 0, host::Fold::Or, value != 0, place));
}
inline int __syncthreads_and(int value, host::Place place = host::here()) {
  return int(host::barrier(0, 0, host::Fold::And, value != 0, place));
}
inline int __syncthreads_count(int value, host::Place place = host::here()) {
  return int(host::barrier(0, 0, host::Fold::Count, value != 0, place));
}
inline void __syncwarp(unsigned mask = ~0u, host::Place place = host::here()) { host::sync_warp(mask, place); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned, host::Place place = host::here()) { host::yield(place); }

// ---- warp collectives
namespace host {
template <class T>
inline T shuffled(uint32_t mask, T value, uint32_t source, Place place) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  word = shuffle(mask, word, source, place);
  memcpy(&value, &word, sizeof(T));
  return value;
}
}  // namespace host
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, host::Place place = host::here()) {
  const uint32_t w = uint32_t(width), lane = host::current->lane;
  return host::shuffled(mask, value, (lane & ~(w - 1)) | (uint32_t(source) & (w - 1)), place);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, host::Place place = host::here()) {
  const uint32_t w = uint32_t(width), lane = host::current->lane, source = lane ^ uint32_t(bits);
  return host::shuffled(mask, value, source <= (lane | (w - 1)) ? source : lane, place);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, host::Place place = host::here()) {
  const uint32_t w = uint32_t(width), lane = host::current->lane, source = lane + delta;
  return host::shuffled(mask, value, source <= (lane | (w - 1)) ? source : lane, place);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, host::Place place = host::here()) {
  const uint32_t w = uint32_t(width), lane = host::current->lane;
  return host::shuffled(mask, value, (lane & (w - 1)) >= delta ? lane - delta : lane, place);
}
inline unsigned __ballot_sync(unsigned mask, int value, host::Place place = host::here()) {
  return host::ballot(mask, value != 0, place);
}
inline int __any_sync(unsigned mask, int value, host::Place place = host::here()) {
  return host::ballot(mask, value != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int value, host::Place place = host::here()) {
  return host::ballot(mask, value != 0, place) == mask;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, host::Place place = host::here()) {
  return host::reduce(mask, value, host::Reduce::Add, place);
}
inline int __reduce_add_sync(unsigned mask, int value, host::Place place = host::here()) {
  return int(host::reduce(mask, unsigned(value), host::Reduce::Add, place));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, host::Place place = host::here()) {
  return host::reduce(mask, value, host::Reduce::Min, place);
}
inline int __reduce_min_sync(unsigned mask, int value, host::Place place = host::here()) {
  return int(host::reduce(mask, unsigned(value), host::Reduce::MinSigned, place));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, host::Place place = host::here()) {
  return host::reduce(mask, value, host::Reduce::Max, place);
}
inline int __reduce_max_sync(unsigned mask, int value, host::Place place = host::here()) {
  return int(host::reduce(mask, unsigned(value), host::Reduce::MaxSigned, place));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, host::Place place = host::here()) {
  return host::reduce(mask, value, host::Reduce::And, place);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, host::Place place = host::here()) {
  return host::reduce(mask, value, host::Reduce::Or, place);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, host::Place place = host::here()) {
  return host::reduce(mask, value, host::Reduce::Xor, place);
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, host::Place place = host::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t word = 0;
  memcpy(&word, &value, sizeof(T));
  return host::match_any(mask, word, place);
}

// ---- atomics, relaxed as on the device. There is none on floats: their order would decide the result.
#define SIDEREAL_ATOMICS(T)                                                                          \
  inline T atomicAdd(T* p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }               \
  inline T atomicOr(T* p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }                 \
  inline T atomicAnd(T* p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }               \
  inline T atomicExch(T* p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }             \
  inline T atomicCAS(T* p, T expected, T v) {                                                        \
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);         \
    return expected;                                                                                 \
  }                                                                                                  \
  inline T atomicMax(T* p, T v) {                                                                    \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                    \
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {} \
    return old;                                                                                      \
  }                                                                                                  \
  inline T atomicMin(T* p, T v) {                                                                    \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                    \
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {} \
    return old;                                                                                      \
  }
SIDEREAL_ATOMICS(unsigned)
SIDEREAL_ATOMICS(int)
SIDEREAL_ATOMICS(unsigned long long)
#undef SIDEREAL_ATOMICS

// ---- bits
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __brev(unsigned x) {
  x = ((x >> 1) & 0x55555555u) | ((x & 0x55555555u) << 1);
  x = ((x >> 2) & 0x33333333u) | ((x & 0x33333333u) << 2);
  x = ((x >> 4) & 0x0f0f0f0fu) | ((x & 0x0f0f0f0fu) << 4);
  return __builtin_bswap32(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline unsigned __float_as_uint(float f) { return host::bits_as<unsigned>(f); }
inline int __float_as_int(float f) { return host::bits_as<int>(f); }
inline float __uint_as_float(unsigned u) { return host::bits_as<float>(u); }
inline float __int_as_float(int i) { return host::bits_as<float>(i); }
inline unsigned long long __double_as_longlong(double d) { return host::bits_as<unsigned long long>(d); }
inline double __longlong_as_double(long long i) { return host::bits_as<double>(i); }

// ---- loads and arithmetic
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcg(const T* p) {
  return *p;
}
inline float __fmul_rn(float a, float b) { return a * b; }  // -ffp-contract=off keeps products and sums apart
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __int2float_rn(int x) { return float(x); }

#define SIDEREAL_MIN_MAX(T)                                          \
  inline constexpr T min(T a, T b) { return b < a ? b : a; }         \
  inline constexpr T max(T a, T b) { return a < b ? b : a; }
SIDEREAL_MIN_MAX(int)
SIDEREAL_MIN_MAX(unsigned)
SIDEREAL_MIN_MAX(long)
SIDEREAL_MIN_MAX(unsigned long)
SIDEREAL_MIN_MAX(long long)
SIDEREAL_MIN_MAX(unsigned long long)
#undef SIDEREAL_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline constexpr unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline constexpr unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline constexpr unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline constexpr unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
