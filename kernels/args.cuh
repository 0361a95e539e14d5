// The argument structs of all kernels, mirrored by src/device/cuda/args.rs; both sides assert the sizes.
//
// A device pointer is a 64-bit integer, here as there. Sizes are multiples of 16 and there is no padding that has no name.
#pragma once
#include <stdint.h>

// A matrix in global memory as the copy engine sees it; made by the driver, and part of an argument struct.
struct alignas(64) TensorMap {
  uint64_t words[16];
};
static_assert(sizeof(TensorMap) == 128);

// kernels/probe.cu
struct ProbeArgs {
  uint64_t x;      // float [count]
  uint64_t y;      // float [count]
  uint64_t count;
  float scale, offset;
};
static_assert(sizeof(ProbeArgs) == 32);

// kernels/checks.cu: each kernel says what it reads and writes
struct CheckArgs {
  uint64_t in, in2;
  uint64_t out, out2;
  uint64_t n;
  uint32_t mode, unused;
};
static_assert(sizeof(CheckArgs) == 48);

// kernels/checks.cu: out [64, N] = a [64, k] b [N, k]^T
struct ProductArgs {
  TensorMap a, b;
  uint64_t out;  // float [64, N]
  uint64_t k;
  uint64_t unused[6];
};
static_assert(sizeof(ProductArgs) == 320);
