// Loops that are worth compiling for wide vectors too; the processor decides when the program starts.
#pragma once
#if defined(__x86_64__) && defined(__ELF__) && !defined(SIDEREAL_HOST_TSAN) && !defined(SIDEREAL_HOST_ASAN)
#define WIDE_VECTORS __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define WIDE_VECTORS
#endif
