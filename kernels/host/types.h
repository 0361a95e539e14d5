// Vector and element types of CUDA for a host compiler; conversions agree with CUDA's bit for bit.
#pragma once
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __restrict__ __restrict
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// __shared__ stays undefined: a shared array is named through SHARED or DYNAMIC_SHARED, so that each block owns its copy.

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
};

#define SIDEREAL_VECTOR_TYPES(Scalar, name, size)                                                \
  struct alignas(size * 2) name##2 {                                                             \
    Scalar x, y;                                                                                 \
  };                                                                                             \
  struct alignas(size * 4 > 16 ? 16 : size * 4) name##4 {                                        \
    Scalar x, y, z, w;                                                                           \
  };                                                                                             \
  inline constexpr name##2 make_##name##2(Scalar x, Scalar y) { return {x, y}; }                 \
  inline constexpr name##4 make_##name##4(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }
SIDEREAL_VECTOR_TYPES(float, float, 4)
SIDEREAL_VECTOR_TYPES(int, int, 4)
SIDEREAL_VECTOR_TYPES(unsigned, uint, 4)
SIDEREAL_VECTOR_TYPES(unsigned short, ushort, 2)
#undef SIDEREAL_VECTOR_TYPES
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline constexpr ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

namespace host {
template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace host

// bfloat16: the upper half of a float.
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 h) { return host::bits_as<float>(uint32_t(h.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t u = host::bits_as<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }

// IEEE half. The magnitude bits of a normal one, moved to a float's place, are the value times 2^-112;
// adding 112 to the exponent undoes that.
struct __half {
  uint16_t bits;
};
inline float __half2float(__half h) {
  const uint32_t magnitude = h.bits & 0x7fffu, sign = uint32_t(h.bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return host::bits_as<float>(sign | 0x7f800000u | (magnitude << 13));
  const float value = magnitude < 0x400u ? float(int(magnitude)) * 0x1p-24f : host::bits_as<float>((magnitude << 13) + (112u << 23));
  return host::bits_as<float>(sign | host::bits_as<uint32_t>(value));
}
inline __half __float2half_rn(float f) {
  const uint32_t u = host::bits_as<uint32_t>(f), magnitude = u & 0x7fffffffu;
  const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and beyond round to infinity
  if (magnitude >= 0x38800000u) {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
    return {uint16_t(sign | ((rounded - (112u << 23)) >> 13))};
  }
  // Subnormal: the last place of 0.5 is 2^-24, the smallest half; the addition rounds.
  const float sum = host::bits_as<float>(magnitude) + 0.5f;
  return {uint16_t(sign | (host::bits_as<uint32_t>(sum) - 0x3f000000u))};
}
inline __half __float2half(float f) { return __float2half_rn(f); }
