// What sm_90a has beyond device.cuh: transaction barriers, bulk tensor copies, warpgroup products. Wrappers as there, each with a
// device body and a host body. Compiled for another architecture a wrapper traps.
//
// Tiles. A tile is rows of 64 two-byte elements (128 bytes), swizzled: the 16-byte chunk c of row r lies at chunk c ^ (r % 8).
// A tile starts at a multiple of 1024. tma_load_2d writes it so and tile_descriptor describes it so, for both operands ("K-major":
// a row runs along the dimension that is summed over). The next 16 columns of the sum are 32 bytes on: descriptor + 2.
//
// A row of such tiles, tile h with columns 64 h to 64 h + 63, is also an operand whose rows are what is summed over ("MN-major"): the next 16 rows
// of the sum are 2048 bytes on, descriptor + 128.
#pragma once
#include "args.cuh"
#include "device.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SIDEREAL_HOPPER 1
#endif

namespace dev {

// Traps where the architecture has no such instruction.
DEVICE_INLINE void needs_hopper() {
#if defined(__CUDA_ARCH__) && !defined(SIDEREAL_HOPPER)
  __trap();
#endif
}

// ---- transaction barriers, 8 bytes of shared memory each
//
// A phase ends when all arrivals have come and as many bytes have landed as were announced. Phases alternate parity, the first is 0;
// mbarrier_wait(b, p) returns once the phase of parity p has ended, so waiting for 1 on a fresh barrier returns at once.

DEVICE_INLINE void mbarrier_init(uint64_t* barrier, uint32_t arrivals SIDEREAL_PLACE) {
#ifdef SIDEREAL_HOPPER
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#elif !defined(__CUDACC__)
  host::mbarrier_init(barrier, arrivals, place);
#else
  needs_hopper();
#endif
}
// Makes initialised barriers visible to the copy engine; a __syncthreads makes them visible to the block.
DEVICE_INLINE void mbarrier_fence_init() {
#ifdef SIDEREAL_HOPPER
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
DEVICE_INLINE void mbarrier_arrive(uint64_t* barrier SIDEREAL_PLACE) {
#ifdef SIDEREAL_HOPPER
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#elif !defined(__CUDACC__)
  host::mbarrier_arrive(barrier, 1, 0, place);
#else
  needs_hopper();
#endif
}
// Arrives and announces `bytes` bytes of copies that report to this barrier.
DEVICE_INLINE void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes SIDEREAL_PLACE) {
#ifdef SIDEREAL_HOPPER
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#elif !defined(__CUDACC__)
  host::mbarrier_arrive(barrier, 1, bytes, place);
#else
  needs_hopper();
#endif
}
// Whether the phase of this parity has ended; may take a while to say no.
DEVICE_INLINE bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity SIDEREAL_PLACE) {
#ifdef SIDEREAL_HOPPER
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
#elif !defined(__CUDACC__)
  return host::mbarrier_test(barrier, parity, place);
#else
  needs_hopper();
  return true;
#endif
}
DEVICE_INLINE void mbarrier_wait(uint64_t* barrier, uint32_t parity SIDEREAL_PLACE) {
#ifdef __CUDACC__
  while (!mbarrier_try_wait(barrier, parity)) {}
#else
  host::mbarrier_wait(barrier, parity, place);
#endif
}

// ---- bulk tensor copies

// Copies the box at (row, column) of a matrix into the tile `to` [box_rows, 64], swizzled; elements outside of the matrix become zero.
// box_rows * 128 bytes are reported to `barrier`. One thread calls it.
DEVICE_INLINE void tma_load_2d(void* to, const TensorMap* map, int column, int row, uint64_t* barrier SIDEREAL_PLACE) {
#ifdef SIDEREAL_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
#elif !defined(__CUDACC__)
  host::tma_load_2d(to, map, column, row, barrier, place);
#else
  needs_hopper();
#endif
}
// The same, with a level-2 cache policy: weights that are read once leave first.
DEVICE_INLINE void tma_load_2d_evict_first(void* to, const TensorMap* map, int column, int row, uint64_t* barrier SIDEREAL_PLACE) {
#ifdef SIDEREAL_HOPPER
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
          shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#elif !defined(__CUDACC__)
  host::tma_load_2d(to, map, column, row, barrier, place);
#else
  needs_hopper();
#endif
}
DEVICE_INLINE void prefetch_tensor_map([[maybe_unused]] const TensorMap* map) {
#ifdef SIDEREAL_HOPPER
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}
// Orders this thread's writes to shared memory before later reads of the copy engine and of wgmma.
DEVICE_INLINE void fence_proxy_async() {
#ifdef SIDEREAL_HOPPER
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- products of warpgroups: 128 threads, the first a multiple of 128

// Describes a tile as an operand: 8 rows to the group, 1024 bytes from group to group, 128-byte swizzle. `next`: bytes from a tile to the one with
// the next 64 columns, which only an operand whose rows are summed over has.
DEVICE_INLINE uint64_t tile_descriptor(const void* tile, uint32_t next = 16 SIDEREAL_PLACE) {
#ifdef __CUDACC__
  const uint32_t address = shared_address(tile);
#else
  const uint32_t address = host::shared_address(tile, place);
#endif
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(next >> 4) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
// Before the first product, and whenever registers of the sums were touched since the last.
DEVICE_INLINE void wgmma_fence() {
#ifdef SIDEREAL_HOPPER
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Keeps the compiler from moving what it does with registers of a product past this point: the fence and the wait order the machine, not the
// compiler. Before the fence for what registers bring along, and behind the wait.
template <int N>
DEVICE_INLINE void wgmma_settle([[maybe_unused]] float (&registers)[N]) {
#ifdef SIDEREAL_HOPPER
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(registers[i])::"memory");
#endif
}
template <int N>
DEVICE_INLINE void wgmma_settle([[maybe_unused]] uint32_t (&registers)[N]) {
#ifdef SIDEREAL_HOPPER
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(registers[i])::"memory");
#endif
}
// Closes the group of products issued so far.
DEVICE_INLINE void wgmma_commit(SIDEREAL_PLACE_ONLY) {
#ifdef SIDEREAL_HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
  host::wgmma_commit(place);
#endif
}
// Waits until at most the N newest groups are under way; before that nobody touches the sums.
template <int N>
DEVICE_INLINE void wgmma_wait(SIDEREAL_PLACE_ONLY) {
#ifdef SIDEREAL_HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#elif !defined(__CUDACC__)
  host::wgmma_wait(N, place);
#endif
}

// d [64, N] = a [64, 16] b [N, 16]^T, plus d where `accumulate`. Thread t holds, of rows 16 (t / 32) + t % 32 / 4 (and 8 more where
// i / 2 is odd), column 8 (i / 4) + 2 (t % 4) + i % 2 in d[i].
template <class T, int N>
DEVICE_INLINE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate SIDEREAL_PLACE);

// d [64, N] += a [64, 16] b [16, N], with b a row of tiles whose rows are summed over. Of a, thread t holds pairs of columns: a[i] is row
// 16 (t / 32) + t % 32 / 4 (and 8 more where i is odd), columns 8 (i / 2) + 2 (t % 4) and one on; nobody touches them before the wait.
template <class T, int N>
DEVICE_INLINE void wgmma_values(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b SIDEREAL_PLACE);

#ifdef SIDEREAL_HOPPER
#define SIDEREAL_NAMES_0_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SIDEREAL_NAMES_32_64 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SIDEREAL_NAMES_64_128 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SIDEREAL_SUMS_8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SIDEREAL_SUMS_32(i) SIDEREAL_SUMS_8(i), SIDEREAL_SUMS_8(i + 8), SIDEREAL_SUMS_8(i + 16), SIDEREAL_SUMS_8(i + 24)
#define SIDEREAL_SUMS_64(i) SIDEREAL_SUMS_32(i), SIDEREAL_SUMS_32(i + 32)
#define SIDEREAL_WGMMA(T, type, N, names, a_name, b_name, flag_name, ...)                                             \
  template <>                                                                                                         \
  DEVICE_INLINE void wgmma<T, N>(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {                        \
    asm volatile(                                                                                                     \
        "{\n.reg .pred p;\nsetp.ne.b32 p, " flag_name ", 0;\n"                                                        \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" names "}, " a_name ", " b_name           \
        ", p, 1, 1, 0, 0;\n}"                                                                                         \
        : __VA_ARGS__                                                                                                 \
        : "l"(a), "l"(b), "r"(uint32_t(accumulate)));                                                                 \
  }
#define SIDEREAL_WGMMA_VALUES(T, type, N, names, a_names, b_name, ...)                                                \
  template <>                                                                                                         \
  DEVICE_INLINE void wgmma_values<T, N>(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {                      \
    asm volatile(                                                                                                     \
        "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"                                                                     \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" names "}, {" a_names "}, " b_name        \
        ", p, 1, 1, 1;\n}"                                                                                            \
        : __VA_ARGS__                                                                                                 \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                        \
  }
#define SIDEREAL_WGMMA_TYPE(T, type)                                                                                          \
  SIDEREAL_WGMMA(T, type, 64, SIDEREAL_NAMES_0_32, "%32", "%33", "%34", SIDEREAL_SUMS_32(0))                                  \
  SIDEREAL_WGMMA(T, type, 128, SIDEREAL_NAMES_0_32 ", " SIDEREAL_NAMES_32_64, "%64", "%65", "%66", SIDEREAL_SUMS_64(0))       \
  SIDEREAL_WGMMA(T, type, 256, SIDEREAL_NAMES_0_32 ", " SIDEREAL_NAMES_32_64 ", " SIDEREAL_NAMES_64_128, "%128", "%129", "%130", \
                 SIDEREAL_SUMS_64(0), SIDEREAL_SUMS_64(64))                                                                   \
  SIDEREAL_WGMMA_VALUES(T, type, 64, SIDEREAL_NAMES_0_32, "%32, %33, %34, %35", "%36", SIDEREAL_SUMS_32(0))                   \
  SIDEREAL_WGMMA_VALUES(T, type, 128, SIDEREAL_NAMES_0_32 ", " SIDEREAL_NAMES_32_64, "%64, %65, %66, %67", "%68", SIDEREAL_SUMS_64(0))
SIDEREAL_WGMMA_TYPE(bf16, "bf16")
SIDEREAL_WGMMA_TYPE(f16, "f16")
#undef SIDEREAL_WGMMA_TYPE
#undef SIDEREAL_WGMMA_VALUES
#undef SIDEREAL_WGMMA
#undef SIDEREAL_SUMS_64
#undef SIDEREAL_SUMS_32
#undef SIDEREAL_SUMS_8
#undef SIDEREAL_NAMES_64_128
#undef SIDEREAL_NAMES_32_64
#undef SIDEREAL_NAMES_0_32
#else
template <class T, int N>
DEVICE_INLINE void wgmma(float (&d)[N / 2], [[maybe_unused]] uint64_t a, [[maybe_unused]] uint64_t b,
                         [[maybe_unused]] bool accumulate
#ifndef __CUDACC__
                         ,
                         host::Place place
#endif
) {
  static_assert(N == 64 || N == 128 || N == 256);
#ifdef __CUDACC__
  (void)d;
  needs_hopper();
#else
  host::wgmma(d, N, is_same<T, bf16>, a, b, accumulate, place);
#endif
}
template <class T, int N>
DEVICE_INLINE void wgmma_values(float (&d)[N / 2], [[maybe_unused]] const uint32_t (&a)[4], [[maybe_unused]] uint64_t b
#ifndef __CUDACC__
                                ,
                                host::Place place
#endif
) {
  static_assert(N == 64 || N == 128);
#ifdef __CUDACC__
  (void)d;
  needs_hopper();
#else
  host::wgmma_values(d, N, is_same<T, bf16>, a, b, place);
#endif
}
#endif

// ---- registers and election

// Gives registers back to the block, down to N a thread, or takes them; every warp of a warpgroup calls it. N is a multiple of 8.
template <int N>
DEVICE_INLINE void registers_shrink() {
#ifdef SIDEREAL_HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N>
DEVICE_INLINE void registers_grow() {
#ifdef SIDEREAL_HOPPER
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
// True in one lane of the warp; all lanes call it.
DEVICE_INLINE bool elect_one(SIDEREAL_PLACE_ONLY) {
#ifdef SIDEREAL_HOPPER
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
#elif !defined(__CUDACC__)
  return host::elect_one(place);
#else
  needs_hopper();
  return threadIdx.x % 32 == 0;
#endif
}

}  // namespace dev
