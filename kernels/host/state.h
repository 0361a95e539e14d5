// The runtime's own state. A worker is an operating-system thread; it holds some resident blocks, each with a fiber per CUDA
// thread, and runs one fiber at a time. Blocks never move between workers.
#pragma once
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "runtime.h"
#include "sanitize.h"

#if !defined(__x86_64__) || defined(SIDEREAL_HOST_UCONTEXT)
#define SIDEREAL_HOST_UCONTEXT 1
#include <ucontext.h>
#endif

namespace host {

struct Block;
struct Warp;
struct Worker;

enum class Wait : uint8_t {
  Ready,
  Word,      // until *word differs from value
  MBarrier,  // until the phase of the mbarrier at `word` differs from parity `value`
  Spin,      // until everybody else had a turn
  Done,
};

// A copy that has been issued and has not landed.
struct PendingCopy {
  void* to;
  const void* from;
  uint32_t bytes, valid;
};

// What few threads use, made at first use.
struct CopyGroups {
  std::vector<PendingCopy> open;
  std::deque<std::vector<PendingCopy>> closed;
};

struct alignas(64) Fiber : ThreadView {
  // What a switch to this fiber needs fills its first cache line.
  Wait wait = Wait::Ready;
  bool waited_for_dependency = false;
  uint32_t value = 0;
  const volatile void* word = nullptr;
  void* stack_pointer = nullptr;
  Worker* worker = nullptr;
  Warp* warp = nullptr;
  uint64_t result = 0;  // what a collective gives this lane
  Place place{"", 0};   // where it last met the runtime
  const char* doing = "started";
  unsigned char* stack = nullptr;
  std::unique_ptr<CopyGroups> copies;
  SanitizerFiber sanitizer;
#ifdef SIDEREAL_HOST_UCONTEXT
  ucontext_t context;
#endif
};

// A meeting of some lanes of a warp, at the index of the lowest of them.
struct Meeting {
  uint32_t mask = 0, arrived = 0, generation = 0;
  const void* kind = nullptr;  // what the lanes are about to do
};
struct LaneArgument {
  uint64_t value;
  const void* in;
  const void* in2;
  void* out;
};
struct Warp {
  Meeting meeting[32];
  LaneArgument argument[32];
  Fiber* lane[32] = {};
  uint32_t exited = 0;
  Place barrier_place[16] = {};       // where the first lane of this warp met the barrier
  uint32_t barrier_generation[16] = {};  // and in which generation, plus one
  SyncObject sync[32][2];
};

struct Barrier {
  uint32_t arrived = 0, generation = 0, threads = 0;
  uint32_t count[2] = {0, 0};  // arrivals with a true value, by parity of the generation
  uint32_t total[2] = {0, 0};
  SyncObject sync[2];
};

// A product of tiles that has been issued and whose sums have not been written.
struct PendingProduct {
  uint64_t a, b;
  uint32_t n;
  bool is_bf16, accumulate;
  bool values;                // a lies in registers, and b's rows are summed over
  float* d[128];
  const uint32_t* words[128];  // those registers, four of each thread; read when the product is performed
};
struct WarpGroup {
  uint32_t arrived = 0, generation = 0;
  const void* kind = nullptr;
  void* argument[128];
  PendingProduct next;
  SyncObject performed;  // what products have read and written is done for whoever waited for them
  std::vector<PendingProduct> open;
  std::deque<std::vector<PendingProduct>> closed;
};

// A bulk copy under way.
struct PendingTile {
  unsigned char* to;
  const void* map;
  int column, row;
  uint64_t* barrier;
  Fiber* by;
  Place place;
};

struct StaticArray {
  const void* key;
  unsigned char* at;
  size_t bytes;
};
struct RedZone {
  uint32_t start, end;  // offsets into dynamic shared memory
  Place place;
};

constexpr size_t SHARED_ARENA = 256 << 10;  // 18 bits of address, as matrix descriptors hold them
constexpr size_t SHARED_LIMIT = 232448;     // 227 KiB, what a block may have on sm_90
constexpr size_t STATIC_LIMIT = 48 << 10;
constexpr size_t STATIC_ARENA = 64 << 10;   // with red zones
constexpr unsigned char POISON = 0xff, RED = 0xa5;

struct Block : BlockView {
  uint32_t threads_total = 0, alive = 0;
  bool forward = false;  // threads take turns by index
  uint64_t id = 0;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  std::vector<WarpGroup> groups;
  Barrier barrier[16];
  std::vector<PendingTile> tiles;
  unsigned char* arena = nullptr;         // dynamic, then static
  bool carved = false;
  size_t dynamic_used = 0, static_used = 0, static_declared = 0;
  std::vector<StaticArray> arrays;
  std::vector<RedZone> zones;
};

// One launch, shared by the workers that run it.
struct Job {
  const SiderealHostLaunch* launch;
  const Kernel* kernel;
  uint64_t blocks;
  std::atomic<uint64_t> next{0};
  std::atomic<uint64_t> progress{0};
  std::atomic<bool> failed{false};
  std::atomic<uint32_t> workers{0};
  uint32_t most_workers = 1;
  SiderealHostError* error;
};

// The stack of a thread's signal handlers, where we had to make it.
struct SignalStack {
  static constexpr size_t BYTES = 64 << 10;
  void* at = nullptr;
  ~SignalStack();
};
// A faulting fiber is abandoned; what remains to be done on its stack begins this far above its end.
constexpr size_t STACK_FOR_FAULTS = 32 << 10;

struct Worker {
  Job* job = nullptr;
  Fiber root;  // the thread that runs the worker; only its stack pointer and sanitizer state are used
  std::vector<Block*> resident;
  std::vector<std::unique_ptr<Block>> owned;
  std::vector<Block*> free_blocks;
  std::vector<std::unique_ptr<Fiber>> owned_fibers;
  std::vector<Fiber*> free_fibers;
  uint64_t random = 1;
  uint64_t steps = 0;  // grows whenever a thread gets somewhere
  uint64_t fault_address = 0;
  int fault_signal = 0, fault_code = 0;
  const Fiber* faulting = nullptr;
  SignalStack signal_stack;
  std::vector<std::pair<void*, size_t>> stack_slabs;

  Worker();
  ~Worker();
  void run(Job* job);

 private:
  void admit(uint64_t id);
  void record_fault();
  void retire(Block* block);
  void abandon();
  bool start_next();
  void stuck();
  void check_end(Block* block);
  Fiber* take_fiber();
};

inline Fiber* self() { return static_cast<Fiber*>(current); }
inline Block* block_of(const Fiber* f) { return static_cast<Block*>(f->block); }
inline const SiderealHostLaunch& launch_of(const Fiber* f) { return *f->worker->job->launch; }

void suspend(Wait wait, const char* doing, Place place);  // returns when the fiber may go on
void suspend_until(const uint32_t* word, uint32_t value, const char* doing, Place place);
void land_tile(Block* block);  // one of those under way
bool mbarrier_phase(const volatile void* barrier);
void leave_barriers(Fiber* fiber);  // an exited thread is no longer waited for
void record_error(Worker& worker, const Fiber* fiber, uint32_t code, uint64_t address, Place place, const char* message);
[[noreturn]] void to_root();
void switch_to(Fiber* to, bool last = false);
void install_fault_handler();
void prepare_thread(Worker& worker);  // a stack for signals, unless the thread has one

// The registry, generated from the sources.
extern const Kernel* const kernel_table[];
extern const uint32_t kernel_count;

}  // namespace host
