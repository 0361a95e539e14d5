// The inner loops of matrix products.
#include "wide.h"

namespace host {

namespace {

WIDE_VECTORS void widen_bf16(const uint32_t* words, int count, float* low, float* high) {
  for (int i = 0; i < count; i++) {
    low[i] = bits_as<float>(words[i] << 16);
    high[i] = bits_as<float>(words[i] & 0xffff0000u);
  }
}

// As __half2float, without branches.
inline float half_to_float(uint32_t half) {
  const uint32_t magnitude = half & 0x7fffu, sign = (half & 0x8000u) << 16;
  const uint32_t small = bits_as<uint32_t>(float(int(magnitude)) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + (112u << 23), special = 0x7f800000u | (magnitude << 13);
  const uint32_t finite = magnitude < 0x400u ? small : normal;
  return bits_as<float>(sign | (magnitude < 0x7c00u ? finite : special));
}

WIDE_VECTORS void widen_f16(const uint32_t* words, int count, float* low, float* high) {
  for (int i = 0; i < count; i++) {
    low[i] = half_to_float(words[i] & 0xffffu);
    high[i] = half_to_float(words[i] >> 16);
  }
}

}  // namespace

void widen(const uint32_t* words, int count, bool is_bf16, float* low, float* high) {
  is_bf16 ? widen_bf16(words, count, low, high) : widen_f16(words, count, low, high);
}

namespace {

// Eight columns at a time; a target without such registers takes two halves.
typedef float Eight __attribute__((vector_size(32), aligned(4)));

inline const Eight& load(const float* from) { return *reinterpret_cast<const Eight*>(from); }
inline void store(float* to, const Eight& value) { *reinterpret_cast<Eight*>(to) = value; }

}  // namespace

WIDE_VECTORS void multiply_16x8(const float (&a)[16][16], const float (&b)[16][8], float (&sums)[16][8]) {
  for (int i = 0; i < 16; i++) {
    Eight sum = a[i][0] * load(b[0]);
    for (int k = 1; k < 16; k++) sum += a[i][k] * load(b[k]);
    store(sums[i], sum);
  }
}

WIDE_VECTORS void multiply_64(const float (*a)[16], const float (*b)[256], int columns, float (*sums)[256]) {
  for (int first = 0; first < columns; first += 32)
    for (int i = 0; i < 64; i++) {
      Eight sum[4];
      for (int j = 0; j < 4; j++) sum[j] = a[i][0] * load(b[0] + first + j * 8);
      for (int k = 1; k < 16; k++)
        for (int j = 0; j < 4; j++) sum[j] += a[i][k] * load(b[k] + first + j * 8);
      for (int j = 0; j < 4; j++) store(sums[i] + first + j * 8, sum[j]);
    }
}

}  // namespace host
