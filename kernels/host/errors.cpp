// Errors of kernels: the launch ends, the process goes on.
//
// Faults of memory become errors too. A handler runs on a stack of its own; when the fault happened in a kernel it makes the
// worker's root go on instead. Faults elsewhere go to whoever handled them before.
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "state.h"

namespace host {

void record_error(Worker& worker, const Fiber* fiber, uint32_t code, uint64_t address, Place place, const char* message) {
  Job& job = *worker.job;
  if (job.failed.exchange(true)) return;
  SiderealHostError& error = *job.error;
  error.code = code;
  error.address = address;
  if (fiber && fiber->block) {
    error.in_kernel = 1;
    error.block[0] = fiber->block->index.x;
    error.block[1] = fiber->block->index.y;
    error.block[2] = fiber->block->index.z;
    error.thread = fiber->linear;
  }
  snprintf(error.place, sizeof error.place, "%s:%u", place.file, place.line);
  snprintf(error.message, sizeof error.message, "%s", message);
}

void fail(Place place, const char* format, ...) {
  Fiber* const f = self();
  char message[900];
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  record_error(*f->worker, f, 1, 0, place, message);
  to_root();
}

namespace {

struct sigaction previous_segv, previous_bus, previous_fpe, previous_ill;

void pass_on(int signal, siginfo_t* info, void* context) {
  const struct sigaction& previous = signal == SIGSEGV  ? previous_segv
                                     : signal == SIGBUS ? previous_bus
                                     : signal == SIGFPE ? previous_fpe
                                                        : previous_ill;
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    sigaction(signal, &previous, nullptr);  // the instruction faults again, this time without us
  } else {
    previous.sa_handler(signal);
  }
}

void on_fault(int signal, siginfo_t* info, void* context) {
  Fiber* const f = self();
  if (!f || !f->block) {
    pass_on(signal, info, context);
    return;
  }
  Worker& worker = *f->worker;
  worker.fault_signal = signal;
  worker.fault_code = info->si_code;
  worker.fault_address = reinterpret_cast<uint64_t>(info->si_addr);
  worker.faulting = f;
#ifdef SIDEREAL_HOST_UCONTEXT
  current = &worker.root;
  setcontext(&worker.root.context);
#else
  // The thread goes on in to_root(), on the fiber's stack if that is sound, else on the top of it.
  ucontext_t* const uc = static_cast<ucontext_t*>(context);
  uc->uc_mcontext.gregs[REG_RSP] = greg_t(reinterpret_cast<uintptr_t>(f->stack) + STACK_FOR_FAULTS - 8);
  uc->uc_mcontext.gregs[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(&to_root));
#endif
}

}  // namespace

void Worker::record_fault() {
  const Fiber* const f = faulting;
  const int signal = fault_signal;
  fault_signal = 0;
  char message[400];
  uint32_t code = 1;
  const uint64_t guard = reinterpret_cast<uint64_t>(f->stack) - 4096;
  if (signal == SIGFPE) {
    snprintf(message, sizeof message, "integer division by zero, after this place");
  } else if (signal == SIGILL) {
    snprintf(message, sizeof message, "undefined behaviour that the compiler saw and made a trap of, after this place");
  } else if (fault_address >= guard && fault_address < guard + 4096) {
    snprintf(message, sizeof message, "stack overflow: a thread's local arrays take too much memory");
  } else if (fault_code == SI_KERNEL) {
    snprintf(message, sizeof message, "access out of range: the address is not one a pointer can have (poison?), after this place");
  } else {
    code = 2;
    snprintf(message, sizeof message, "access out of range: address 0x%llx, after this place", (unsigned long long)fault_address);
  }
  record_error(*this, f, code, code == 2 ? fault_address : 0, f->place, message);
}

void install_fault_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &previous_segv);
    sigaction(SIGBUS, &action, &previous_bus);
    sigaction(SIGFPE, &action, &previous_fpe);
    sigaction(SIGILL, &action, &previous_ill);
  });
}

SignalStack::~SignalStack() {
  if (!at) return;
  stack_t off{};
  off.ss_flags = SS_DISABLE;
  sigaltstack(&off, nullptr);
  munmap(at, BYTES);
}

void prepare_thread(Worker& worker) {
  stack_t present{};
  sigaltstack(nullptr, &present);
  if (!(present.ss_flags & SS_DISABLE)) return;
  void* const at = mmap(nullptr, SignalStack::BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return;
  worker.signal_stack.at = at;
  stack_t ours{};
  ours.ss_sp = at;
  ours.ss_size = SignalStack::BYTES;
  sigaltstack(&ours, nullptr);
}

}  // namespace host
