// The argument structs of all kernels, mirrored by src/device/cuda/args.rs; both sides assert the sizes.
//
// A device pointer is a 64-bit integer, here as there. Sizes are multiples of 16 and there is no padding that has no name.
#pragma once
#include <stdint.h>

// kernels/probe.cu
struct ProbeArgs {
  uint64_t x;      // float [count]
  uint64_t y;      // float [count]
  uint64_t count;
  float scale, offset;
};
static_assert(sizeof(ProbeArgs) == 32);
