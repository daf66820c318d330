#include "fiber.h"

#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <sys/mman.h>

#include "runtime.h"

namespace cuda_on_cpu {

#ifdef __x86_64__
// Saves the registers that the System V ABI lets a callee keep, exchanges stacks, restores. 20 times faster than
// swapcontext, which makes a system call for the signal mask.
extern "C" void cuda_on_cpu_switch_stack(void** save, void* load);
asm(R"(
.text
.globl cuda_on_cpu_switch_stack
.hidden cuda_on_cpu_switch_stack
.type cuda_on_cpu_switch_stack,@function
cuda_on_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch_stack,.-cuda_on_cpu_switch_stack
)");
constexpr int kSavedRegisters = 6;
#endif

// Sanitized frames are several times larger.
#if defined(CUDA_ON_CPU_ASAN) || defined(CUDA_ON_CPU_TSAN)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr size_t kGuardBytes = 4096;

static char* allocate_stack() {
  void* region = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED || mprotect(region, kGuardBytes, PROT_NONE)) {
    std::perror("cuda_on_cpu: no memory for the stack of a thread");
    std::abort();
  }
  return static_cast<char*>(region) + kGuardBytes;
}

Fiber::~Fiber() {
#ifdef CUDA_ON_CPU_TSAN
  if (owns_race_context_) __tsan_destroy_fiber(race_context_);
#endif
  if (!stack_) return;
#ifdef CUDA_ON_CPU_ASAN
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  munmap(stack_ - kGuardBytes, kGuardBytes + kStackBytes);
}

void Fiber::restart(void (*main)()) {
  if (!stack_) stack_ = allocate_stack();
  stack_bottom_ = stack_;
  stack_size_ = kStackBytes;
  fake_stack_ = nullptr;
#ifdef CUDA_ON_CPU_ASAN
  // The last user of this stack may have been abandoned with its red zones in place.
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#ifdef CUDA_ON_CPU_TSAN
  if (!owns_race_context_) race_context_ = __tsan_create_fiber(0), owns_race_context_ = true;
#endif
#ifdef __x86_64__
  // As if `main` had been called from an address of null: at entry the stack is 8 bytes off a multiple of 16.
  auto** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 2;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(main);
  for (int i = 0; i < kSavedRegisters; i++) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, main, 0);
#endif
}

void Fiber::entered() {
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void Fiber::adopt_os_thread() {
#ifdef CUDA_ON_CPU_ASAN
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &stack_size_);
  pthread_attr_destroy(&attributes);
  stack_bottom_ = bottom;
#endif
#ifdef CUDA_ON_CPU_TSAN
  race_context_ = __tsan_get_current_fiber();
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool dying) {
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_start_switch_fiber(dying ? nullptr : &from.fake_stack_, to.stack_bottom_, to.stack_size_);
#endif
#ifdef CUDA_ON_CPU_TSAN
  // A switch orders nothing: only barriers do.
  __tsan_switch_to_fiber(to.race_context_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef __x86_64__
  cuda_on_cpu_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#ifdef CUDA_ON_CPU_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace cuda_on_cpu
