// What a kernel compiled for the host asks of the runtime: a thread's coordinates, barriers, warp collectives, asynchronous
// copies, shared memory, and errors. Each CUDA thread is a fiber; all of it is implemented in kernels/host/*.cpp.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "types.h"

#define SIDEREAL_HOST_RUN 1

namespace host {

// A place in a kernel's source.
struct Place {
  const char* file;
  unsigned line;
};
constexpr Place here(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) { return {file, line}; }

// What a thread sees of its block.
struct BlockView {
  uint3 index;
  dim3 threads, grid;
  unsigned char* dynamic;    // dynamic shared memory, 1024-aligned
  uint32_t dynamic_bytes;    // as launched
};
// What a thread knows of itself.
struct ThreadView {
  uint3 index;
  uint32_t linear, lane;
  BlockView* block;
};
extern __thread ThreadView* current __attribute__((tls_model("initial-exec")));

// One entry, for the registry.
struct Kernel {
  const char* name;
  uint32_t threads, args_bytes;
  void (*run)(const void* args);
  const char* file;
  unsigned line;
};

// Ends the launch with an error at `place`; printf-style. Locals of the fiber are abandoned, not destroyed.
[[noreturn]] void fail(Place place, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- waiting
void yield(Place place);  // lets every other thread go on before it returns: for loops that poll memory
enum class Fold { None, Count, And, Or };
// Block barrier `id`; `threads` 0 means all that have not exited. Returns the fold of `value` over the arrivals.
uint32_t barrier(uint32_t id, uint32_t threads, Fold fold, uint32_t value, Place place);
void barrier_arrive(uint32_t id, uint32_t threads, Place place);
void dependency_wait();

// ---- warp collectives; each names the lanes that take part
enum class Reduce { Add, Min, Max, MinSigned, MaxSigned, And, Or, Xor };
void sync_warp(uint32_t mask, Place place);
uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t source_lane, Place place);
uint32_t ballot(uint32_t mask, bool value, Place place);
bool elect_one(Place place);
uint32_t reduce(uint32_t mask, uint32_t value, Reduce op, Place place);
uint32_t match_any(uint32_t mask, uint64_t value, Place place);
void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Place place);
void mma_16816(float* d, const uint32_t* a, const uint32_t* b, bool is_bf16, Place place);

// ---- shared memory
void* shared_array(const void* key, size_t bytes, size_t align, Place place);  // one per block and key, filled with 0xff
void* carve(uint32_t& declared, uint32_t& actual, size_t bytes, size_t align, Place place);
uint32_t shared_address(const void* pointer, Place place);

// ---- asynchronous copies
void cp_async(void* to, const void* from, uint32_t bytes, uint32_t valid, Place place);
void cp_async_commit();
void cp_async_wait(uint32_t newest_left);

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, Place place);
void mbarrier_arrive(uint64_t* barrier, uint32_t arrivals, uint32_t bytes, Place place);
bool mbarrier_test(const uint64_t* barrier, uint32_t parity, Place place);
void mbarrier_wait(const uint64_t* barrier, uint32_t parity, Place place);
void tma_load_2d(void* to, const void* tensor_map, int column, int row, uint64_t* barrier, Place place);
void wgmma(float* d, uint32_t n, bool is_bf16, uint64_t a, uint64_t b, bool accumulate, Place place);
void wgmma_values(float* d, uint32_t n, bool is_bf16, const uint32_t* a, uint64_t b, Place place);
void wgmma_commit(Place place);
void wgmma_wait(uint32_t newest_left, Place place);

// Flags between blocks; the sanitizers learn of the order they establish.
uint32_t load_acquire(const uint32_t* flag);
uint32_t add_release(uint32_t* flag, uint32_t value);
void store_release(uint32_t* flag, uint32_t value);

inline void check_aligned(const void* pointer, size_t align, const char* what, Place place) {
  if (reinterpret_cast<uintptr_t>(pointer) & (align - 1)) [[unlikely]]
    fail(place, "misaligned address: %s of %p, which is no multiple of %zu", what, pointer, align);
}
}  // namespace host

#include "names.h"
