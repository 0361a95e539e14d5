// What the emulated driver calls, in C. A shared object of kernels exports these two names and nothing else.
#pragma once
#include <cstdint>

extern "C" {
struct SiderealHostKernel {
  const char* name;
  uint32_t threads;     // most threads of a block
  uint32_t args_bytes;  // size of the argument struct
};

struct SiderealHostLaunch {
  uint32_t kernel;  // index into the table
  uint32_t grid[3];
  uint32_t threads;
  uint32_t shared;      // bytes of dynamic shared memory
  uint32_t dependent;   // every thread has to call dependency_wait()
  uint32_t order;       // 0 forward, 1 reverse, 2 random, 3 warp by warp, 4 warp by warp in reverse
  uint32_t early;       // asynchronous copies land when issued, else as late as they may
  uint32_t os_threads;  // at most; 0: one per core
  uint64_t seed;        // of the random order
  const void* args;     // 64-byte aligned
};

// code 0: none, 1: the runtime refused something, 2: access out of range (`address`)
struct SiderealHostError {
  uint32_t code;
  uint32_t block[3];
  uint32_t thread;
  uint32_t in_kernel;  // block and thread are known
  uint64_t address;
  char place[256];     // file:line
  char message[1024];
};

const SiderealHostKernel* sidereal_host_kernels(uint32_t* count);
// Runs a launch to its end. Returns the error's code.
uint32_t sidereal_host_launch(const SiderealHostLaunch* launch, SiderealHostError* error);
}
