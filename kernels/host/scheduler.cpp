// Fibers, their order, workers and launches.
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

#include "state.h"

namespace host {

__thread ThreadView* current = nullptr;

namespace {

#if defined(SIDEREAL_HOST_ASAN) || defined(SIDEREAL_HOST_TSAN)
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr size_t GUARD = 4096, STACKS_PER_SLAB = 32;

inline bool ready(const Fiber& f) {
  switch (f.wait) {
    case Wait::Ready: return true;
    case Wait::Word: return *static_cast<const volatile uint32_t*>(f.word) != f.value;
    case Wait::MBarrier: return mbarrier_phase(f.word) != (f.value & 1);
    default: return false;
  }
}

Fiber* scan(const Block& block, size_t start, size_t step) {
  const size_t n = block.fibers.size();
  for (size_t k = 0, i = start; k < n; k++) {
    if (ready(*block.fibers[i])) return block.fibers[i];
    i += step;
    if (i >= n) i -= n;
  }
  return nullptr;
}

uint64_t next_random(Worker& worker) {
  worker.random = worker.random * 6364136223846793005ull + 1442695040888963407ull;
  return worker.random >> 33;
}

// The fiber to go on after `from`, or within `block` from its start when `from` is null.
Fiber* pick_in(Worker& worker, const Block& block, const Fiber* from) {
  const uint32_t order = worker.job->launch->order;
  const size_t n = block.fibers.size();
  const bool backwards = order == 1 || order == 4;
  const size_t step = backwards ? n - 1 : 1;
  if (order == 2) return scan(block, next_random(worker) % n, 1);
  if (!from) return scan(block, backwards ? n - 1 : 0, step);
  if (order >= 3) {
    const size_t first = from->linear & ~31u;
    for (size_t k = 1; k <= 32; k++) {
      const size_t lane = (from->lane + (backwards ? 32 - k : k)) & 31;
      if (ready(*block.fibers[first + lane])) return block.fibers[first + lane];
    }
  }
  return scan(block, (from->linear + step) % n, step);
}

// The fiber to go on after `from`, in its block if one there is ready.
Fiber* pick_ready(Worker& worker, const Fiber* from) {
  if (worker.job->failed.load(std::memory_order_relaxed)) return nullptr;
  const Block* const block = from ? block_of(from) : nullptr;
  if (from)
    if (Fiber* const f = pick_in(worker, *block, from)) return f;
  for (const Block* other : worker.resident)
    if (other != block)
      if (Fiber* const f = pick_in(worker, *other, nullptr)) return f;
  return nullptr;
}

// The same; when nobody is ready the tiles under way land, as late as they may.
Fiber* pick_slowly(Worker& worker, const Fiber* from) {
  Fiber* next = pick_ready(worker, from);
  if (next || !from) return next;
  for (Block* block : worker.resident)
    while (!block->tiles.empty()) {
      land_tile(block);
      if ((next = pick_ready(worker, from))) return next;
    }
  return nullptr;
}

// The commonest case first: the next thread is ready.
inline Fiber* pick(Worker& worker, const Fiber* from) {
  if (from && block_of(from)->forward) {
    const auto& fibers = block_of(from)->fibers;
    size_t i = from->linear + 1;
    if (i == fibers.size()) i = 0;
    if (ready(*fibers[i]) && !worker.job->failed.load(std::memory_order_relaxed)) {
      if (i + 2 < fibers.size()) {
        __builtin_prefetch(fibers[i + 1]->stack_pointer);
        __builtin_prefetch(fibers[i + 2]);
      }
      return fibers[i];
    }
  }
  return pick_slowly(worker, from);
}

#ifndef SIDEREAL_HOST_UCONTEXT
// Saves the registers a function must keep and the stack pointer, and goes on where `to` was saved.
extern "C" void sidereal_host_switch(void** from, void* to) __attribute__((visibility("hidden")));
asm(".text\n"
    ".globl sidereal_host_switch\n"
    ".hidden sidereal_host_switch\n"
    ".type sidereal_host_switch,@function\n"
    "sidereal_host_switch:\n"
    "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    "ret\n"
    ".size sidereal_host_switch, .-sidereal_host_switch\n");
#endif

void fiber_main() {
#ifdef SIDEREAL_HOST_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self()->worker->root.sanitizer.bottom, &self()->worker->root.sanitizer.size);
#endif
  {
    Job* const job = self()->worker->job;
    happens_after(job);
    job->kernel->run(job->launch->args);
  }
  Fiber* const f = self();
  Worker& worker = *f->worker;
  Warp& warp = *f->warp;
  const Place end{worker.job->kernel->file, worker.job->kernel->line};
  for (const Meeting& m : warp.meeting)
    if (m.arrived && (m.mask >> f->lane & 1))
      fail(end, "exited lane: lane %u returned while others of its warp wait for it in a collective with mask 0x%08x", f->lane, m.mask);
  if (worker.job->launch->dependent && !f->waited_for_dependency)
    fail(end, "dependent launch: the thread returned without a call of dependency_wait()");
  if (f->copies && !f->copies->closed.empty()) cp_async_wait(0);
  happens_before(reinterpret_cast<char*>(worker.job) + 8);
  f->wait = Wait::Done;
  warp.exited |= 1u << f->lane;
  worker.steps++;
  leave_barriers(f);
  Fiber* const next = block_of(f)->alive ? pick(worker, f) : nullptr;
  switch_to(next ? next : &worker.root, true);
  __builtin_unreachable();
}

void arm(Fiber* f) {
  unpoison(f->stack, STACK);
#ifdef SIDEREAL_HOST_TSAN
  mmap(f->stack, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  f->sanitizer.tsan = __tsan_create_fiber(0);
#endif
  f->sanitizer.fake_stack = nullptr;
  f->sanitizer.bottom = f->stack;
  f->sanitizer.size = STACK;
#ifdef SIDEREAL_HOST_UCONTEXT
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack;
  f->context.uc_stack.ss_size = STACK;
  f->context.uc_link = nullptr;
  makecontext(&f->context, fiber_main, 0);
#else
  // Stacks begin at different lines of their pages, or the frames of all threads would share a few sets of the cache.
  void** top = reinterpret_cast<void**>(f->stack + STACK - f->linear * 320 % 4096);
  *--top = nullptr;  // at its entry a function's stack is 8 off a multiple of 16
  *--top = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f->stack_pointer = top;
#endif
}

}  // namespace

void switch_to(Fiber* to, [[maybe_unused]] bool last) {
  Fiber* const from = self();
  current = to;
#ifdef SIDEREAL_HOST_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from->sanitizer.fake_stack, to->sanitizer.bottom, to->sanitizer.size);
#endif
#ifdef SIDEREAL_HOST_TSAN
  __tsan_switch_to_fiber(to->sanitizer.tsan, 1);  // 1: establishes no order
#endif
#ifdef SIDEREAL_HOST_UCONTEXT
  swapcontext(&from->context, &to->context);
#else
  sidereal_host_switch(&from->stack_pointer, to->stack_pointer);
#endif
#ifdef SIDEREAL_HOST_ASAN
  Fiber* const root = &from->worker->root;
  __sanitizer_finish_switch_fiber(from->sanitizer.fake_stack, from == root ? nullptr : &root->sanitizer.bottom,
                                  from == root ? nullptr : &root->sanitizer.size);
#endif
}

void to_root() {
  switch_to(&self()->worker->root, true);
  __builtin_unreachable();
}

void suspend(Wait wait, const char* doing, Place place) {
  Fiber* const f = self();
  f->wait = wait;
  f->doing = doing;
  f->place = place;
  Fiber* const next = pick(*f->worker, f);
  if (next != f) switch_to(next ? next : &f->worker->root);
  f->wait = Wait::Ready;
  if (wait != Wait::Spin) f->worker->steps++;
}

void suspend_until(const uint32_t* word, uint32_t value, const char* doing, Place place) {
  Fiber* const f = self();
  f->word = word;
  f->value = value;
  suspend(Wait::Word, doing, place);
}

void yield(Place place) { suspend(Wait::Spin, "polls memory", place); }

// ---- workers

Worker::Worker() {
  root.worker = this;
  root.block = nullptr;
}

Worker::~Worker() {
  for (auto& [at, bytes] : stack_slabs) munmap(at, bytes);
  for (auto& block : owned) munmap(block->arena, SHARED_ARENA + STATIC_ARENA);
}

Fiber* Worker::take_fiber() {
  if (free_fibers.empty()) {
    constexpr size_t bytes = (STACK + GUARD) * STACKS_PER_SLAB;
    void* const slab = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) return nullptr;
    stack_slabs.emplace_back(slab, bytes);
    for (size_t i = STACKS_PER_SLAB; i-- > 0;) {
      unsigned char* const guard = static_cast<unsigned char*>(slab) + i * (STACK + GUARD);
      mprotect(guard, GUARD, PROT_NONE);
      owned_fibers.push_back(std::make_unique<Fiber>());
      owned_fibers.back()->stack = guard + GUARD;
      free_fibers.push_back(owned_fibers.back().get());
    }
  }
  Fiber* const f = free_fibers.back();
  free_fibers.pop_back();
  return f;
}

void Worker::admit(uint64_t id) {
  const Quiet quiet;
  const SiderealHostLaunch& launch = *job->launch;
  if (free_blocks.empty()) {
    owned.push_back(std::make_unique<Block>());
    void* const arena = mmap(nullptr, SHARED_ARENA + STATIC_ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    owned.back()->arena = static_cast<unsigned char*>(arena);
    free_blocks.push_back(owned.back().get());
  }
  Block* const block = free_blocks.back();
  free_blocks.pop_back();
#ifdef SIDEREAL_HOST_TSAN
  mmap(block->arena, SHARED_ARENA + STATIC_ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
#endif
  unsigned char* const arena = block->arena;
  block->id = id;
  block->index = {uint32_t(id % launch.grid[0]), uint32_t(id / launch.grid[0] % launch.grid[1]),
                  uint32_t(id / launch.grid[0] / launch.grid[1])};
  block->threads = {launch.threads, 1, 1};
  block->grid = {launch.grid[0], launch.grid[1], launch.grid[2]};
  block->threads_total = block->alive = launch.threads;
  block->dynamic = arena;
  block->dynamic_bytes = launch.shared;
  block->dynamic_used = launch.shared;
  block->static_used = block->static_declared = 0;
  block->carved = false;
  block->forward = launch.order == 0;
  block->arrays.clear();
  block->zones.clear();
  block->tiles.clear();
  block->warps.assign(launch.threads / 32, Warp{});
  block->groups.assign((launch.threads + 127) / 128, WarpGroup{});
  for (Barrier& b : block->barrier) b = Barrier{};
  memset(arena, POISON, launch.shared);
  // Whoever does not use a carver writes past the end into this zone.
  memset(arena + launch.shared, RED, 256);
  block->zones.push_back({launch.shared, launch.shared + 256, {job->kernel->file, job->kernel->line}});
  block->fibers.resize(launch.threads);
  for (uint32_t t = 0; t < launch.threads; t++) {
    Fiber* const f = take_fiber();
    block->fibers[t] = f;
    f->index = {t, 0, 0};
    f->linear = t;
    f->lane = t % 32;
    f->block = block;
    f->warp = &block->warps[t / 32];
    f->warp->lane[f->lane] = f;
    f->worker = this;
    f->wait = Wait::Ready;
    f->waited_for_dependency = false;
    f->place = {job->kernel->file, job->kernel->line};
    f->doing = "runs";
    if (f->copies) f->copies->open.clear(), f->copies->closed.clear();
    arm(f);
  }
  resident.push_back(block);
}

void Worker::retire(Block* block) {
  const Quiet quiet;
  for (Fiber* f : block->fibers) {
#ifdef SIDEREAL_HOST_TSAN
    __tsan_destroy_fiber(f->sanitizer.tsan);
#endif
    free_fibers.push_back(f);
  }
  block->fibers.clear();
  unpoison(block->arena, SHARED_ARENA + STATIC_ARENA);
  free_blocks.push_back(block);
}

void Worker::abandon() {
  for (Block* block : resident) retire(block);
  resident.clear();
}

// Blocks start in the order of the threads, so that a wish for another order among blocks shows too.
bool Worker::start_next() {
  const uint64_t i = job->next.fetch_add(1, std::memory_order_relaxed);
  if (i >= job->blocks) return false;
  const uint32_t order = job->launch->order;
  uint64_t id = i;
  if (order == 1 || order == 4) id = job->blocks - 1 - i;
  if (order == 2) {
    uint64_t factor = job->launch->seed * 2 + 1;  // the next one without a common divisor permutes
    while (std::gcd<uint64_t>(factor % job->blocks, job->blocks) != 1 && job->blocks > 1) factor++;
    id = (unsigned __int128)(factor) * i % job->blocks;
  }
  admit(id);
  return true;
}

// What a block that ended must not leave behind.
void Worker::check_end(Block* block) {
  if (!block->tiles.empty())
    record_error(*this, block->fibers[0], 1, 0, block->tiles[0].place, "the block ended while this bulk copy was under way");
  for (const WarpGroup& group : block->groups)
    if (!group.open.empty() || !group.closed.empty())
      record_error(*this, block->fibers[0], 1, 0, block->fibers[0]->place, "the block ended without waiting for its wgmma products");
  for (const RedZone& zone : block->zones)
    for (uint32_t i = zone.start; i < zone.end; i++)
      if (block->arena[i] != RED) {
        char message[256];
        snprintf(message, sizeof message,
                 "shared-memory overrun: byte %u after the array that is carved here was written (found when the block ended)",
                 i - zone.start);
        record_error(*this, block->fibers[0], 1, 0, zone.place, message);
        return;
      }
}

namespace {

// The first few threads that wait, and for what.
std::string waiting_threads(const std::vector<Block*>& resident) {
  std::string list;
  int named = 0;
  size_t total = 0;
  for (const Block* block : resident) {
    Place last{"", 0};
    for (const Fiber* f : block->fibers) {
      if (f->wait == Wait::Done) continue;
      total++;
      if (named == 6 || (f->place.line == last.line && f->place.file == last.file)) continue;
      last = f->place;
      char line[320];
      snprintf(line, sizeof line, "%s thread %u of block %u at %s:%u (%s)", named ? "," : "", f->linear, f->block->index.x,
               f->place.file, f->place.line, f->doing);
      list += line;
      named++;
    }
  }
  char head[64];
  snprintf(head, sizeof head, "%zu threads wait:", total);
  return head + list;
}

const Fiber* first_waiting(const std::vector<Block*>& resident) {
  for (const Block* block : resident)
    for (const Fiber* f : block->fibers)
      if (f->wait != Wait::Done) return f;
  return nullptr;
}

}  // namespace

// No thread is ready: those that poll get another turn, then further blocks start.
void Worker::stuck() {
  using Clock = std::chrono::steady_clock;
  bool polls = false;
  for (Block* block : resident)
    for (Fiber* f : block->fibers)
      if (f->wait == Wait::Spin) {
        f->wait = Wait::Ready;
        polls = true;
      }
  const Fiber* const waiting = first_waiting(resident);
  if (!polls) {
    const std::string message = "deadlock: no thread can go on; " + waiting_threads(resident);
    record_error(*this, waiting, 1, 0, waiting->place, message.c_str());
    return;
  }
  static thread_local uint64_t seen_steps = 0, seen_progress = 0, rounds = 0;
  static thread_local Clock::time_point since;
  if (steps != seen_steps) job->progress.fetch_add(1, std::memory_order_relaxed);
  const uint64_t progress = job->progress.load(std::memory_order_relaxed);
  if (steps != seen_steps || progress != seen_progress || rounds == 0) {
    since = Clock::now();
    rounds = 0;
  }
  seen_steps = steps;
  seen_progress = progress;
  rounds++;
  const bool alone = job->workers.load() <= 1;
  if (!alone && rounds < 64) {
    sched_yield();
    return;
  }
  if (start_next()) return;
  sched_yield();
  const auto waited = Clock::now() - since;
  if (rounds > 1000 && waited > std::chrono::milliseconds(alone ? 500 : 20000)) {
    const std::string message = "deadlock: memory is polled and nobody changes it; " + waiting_threads(resident);
    record_error(*this, waiting, 1, 0, waiting->place, message.c_str());
    rounds = 0;
  }
}

void Worker::run(Job* next_job) {
  job = next_job;
  random = job->launch->seed * 0x9e3779b97f4a7c15ull + 1;
  current = &root;
#ifdef SIDEREAL_HOST_TSAN
  root.sanitizer.tsan = __tsan_get_current_fiber();
#endif
  happens_before(job);
  while (!job->failed.load(std::memory_order_relaxed)) {
    for (size_t i = 0; i < resident.size();) {
      Block* const block = resident[i];
      if (block->alive) {
        i++;
        continue;
      }
      check_end(block);
      retire(block);
      resident.erase(resident.begin() + ptrdiff_t(i));
    }
    if (resident.empty() && !start_next()) break;
    if (Fiber* const f = pick(*this, nullptr))
      switch_to(f);
    else if (!job->failed.load(std::memory_order_relaxed))
      stuck();
    if (fault_signal) record_fault();
  }
  abandon();
  happens_after(reinterpret_cast<char*>(job) + 8);
  current = nullptr;
  job = nullptr;
}

// ---- launches

namespace {

// Threads that help with launches of more than one block. They live as long as the process.
class Helpers {
 public:
  void join(Job* job, Worker& worker) {
    {
      std::lock_guard lock(mutex_);
      while (threads_ + 1 < std::max(1u, std::thread::hardware_concurrency())) {
        std::thread([this] { help(); }).detach();
        threads_++;
      }
      jobs_.push_back(job);
    }
    wake_.notify_all();
    worker.run(job);
    std::unique_lock lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), job));
    done_.wait(lock, [&] { return job->workers.load() == 1; });
  }

 private:
  void help() {
    Worker worker;
    prepare_thread(worker);
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      for (Job* candidate : jobs_)
        if (candidate->workers.load() < candidate->most_workers && candidate->next.load() < candidate->blocks) job = candidate;
      if (!job) {
        wake_.wait(lock);
        continue;
      }
      job->workers.fetch_add(1);
      lock.unlock();
      worker.run(job);
      lock.lock();
      job->workers.fetch_sub(1);
      done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<Job*> jobs_;
  unsigned threads_ = 0;
};

Helpers& helpers() {
  static Helpers* const only = new Helpers;  // never destroyed: its threads run until the process ends
  return *only;
}

struct CallersWorker {
  Worker worker;
  CallersWorker() { prepare_thread(worker); }
};

}  // namespace

void run_job(Job& job) {
  static thread_local CallersWorker caller;
  job.workers.store(1);
  uint32_t most = job.launch->os_threads ? job.launch->os_threads : std::max(1u, std::thread::hardware_concurrency());
#ifdef SIDEREAL_HOST_TSAN
  most = 1;
#endif
  job.most_workers = uint32_t(std::min<uint64_t>(most, job.blocks));
  if (job.most_workers == 1)
    caller.worker.run(&job);
  else
    helpers().join(&job, caller.worker);
}

}  // namespace host

extern "C" __attribute__((visibility("default"))) const SiderealHostKernel* sidereal_host_kernels(uint32_t* count) {
  static const std::vector<SiderealHostKernel>* const table = [] {
    auto* const list = new std::vector<SiderealHostKernel>;
    for (uint32_t i = 0; i < host::kernel_count; i++) {
      const host::Kernel& k = *host::kernel_table[i];
      list->push_back({k.name, k.threads, k.args_bytes});
    }
    return list;
  }();
  *count = uint32_t(table->size());
  return table->data();
}

extern "C" __attribute__((visibility("default"))) uint32_t sidereal_host_launch(const SiderealHostLaunch* launch,
                                                                                SiderealHostError* error) {
  host::install_fault_handler();
  *error = SiderealHostError{};
  host::Job job;
  job.launch = launch;
  job.kernel = host::kernel_table[launch->kernel];
  job.blocks = uint64_t(launch->grid[0]) * launch->grid[1] * launch->grid[2];
  job.error = error;
  host::run_job(job);
  return error->code;
}
