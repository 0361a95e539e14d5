// Hooks for kernels compiled with -fsanitize. The runtime itself is compiled without, and tells the sanitizer what it does:
// SIDEREAL_HOST_ASAN and SIDEREAL_HOST_TSAN name the one in use.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef SIDEREAL_HOST_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom_old, size_t* size_old);
void __asan_poison_memory_region(const volatile void* at, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* at, size_t bytes);
void* __asan_region_is_poisoned(void* at, size_t bytes);
}
#endif
#ifdef SIDEREAL_HOST_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* at);
void __tsan_release(void* at);
void __tsan_read_range(void* at, size_t bytes);
void __tsan_write_range(void* at, size_t bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace host {

struct SanitizerFiber {
  void* fake_stack = nullptr;
  void* tsan = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};
// An address that stands for an order between threads.
struct SyncObject {
  uint64_t unused = 0;
};

// While it lives, the thread sanitizer looks away: the runtime keeps its books, with library calls that the sanitizer sees.
class Quiet {
 public:
#ifdef SIDEREAL_HOST_TSAN
  Quiet() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  Quiet() {}
#endif
  Quiet(const Quiet&) = delete;
};

inline void happens_before(const volatile void* object) {
#ifdef SIDEREAL_HOST_TSAN
  __tsan_release(const_cast<void*>(object));
#else
  (void)object;
#endif
}
inline void happens_after(const volatile void* object) {
#ifdef SIDEREAL_HOST_TSAN
  __tsan_acquire(const_cast<void*>(object));
#else
  (void)object;
#endif
}
// The runtime reads or writes on behalf of the current thread. Returns whether the memory may be touched.
inline bool reads(const void* at, size_t bytes) {
#if defined(SIDEREAL_HOST_TSAN)
  __tsan_read_range(const_cast<void*>(at), bytes);
#elif defined(SIDEREAL_HOST_ASAN)
  return !__asan_region_is_poisoned(const_cast<void*>(at), bytes);
#endif
  (void)at, (void)bytes;
  return true;
}
inline bool writes(void* at, size_t bytes) {
#if defined(SIDEREAL_HOST_TSAN)
  __tsan_write_range(at, bytes);
#elif defined(SIDEREAL_HOST_ASAN)
  return !__asan_region_is_poisoned(at, bytes);
#endif
  (void)at, (void)bytes;
  return true;
}
inline void poison(void* at, size_t bytes) {
#ifdef SIDEREAL_HOST_ASAN
  __asan_poison_memory_region(at, bytes);
#else
  (void)at, (void)bytes;
#endif
}
inline void unpoison(void* at, size_t bytes) {
#ifdef SIDEREAL_HOST_ASAN
  __asan_unpoison_memory_region(at, bytes);
#else
  (void)at, (void)bytes;
#endif
}

}  // namespace host
