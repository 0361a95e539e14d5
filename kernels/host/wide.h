// Loops worth compiling for wide vectors too; the processor decides when the program starts. Sums stay in the same order.
#pragma once
#include "types.h"

#if defined(__x86_64__) && defined(__ELF__) && !defined(SIDEREAL_HOST_TSAN) && !defined(SIDEREAL_HOST_ASAN)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define WIDE_VECTORS
#endif

namespace host {

// Pairs of 2-byte elements as floats: the low halves and the high halves.
void widen(const uint32_t* words, int count, bool is_bf16, float* low, float* high);

// sums [rows, columns] = a [rows, 16] b [16, columns], per element in order of k.
void multiply_16x8(const float (&a)[16][16], const float (&b)[16][8], float (&sums)[16][8]);
// 64 rows; columns are a multiple of 32.
void multiply_64(const float (*a)[16], const float (*b)[256], int columns, float (*sums)[256]);

}  // namespace host
