// Stackful coroutines: the least that a block of CUDA threads needs.
#pragma once
#include <cstddef>
#ifndef __x86_64__
#  include <ucontext.h>
#endif

namespace cuda_on_cpu {

// A place where execution can continue. A default-constructed one stands for the OS thread's own stack.
class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Prepares to run `main` from the start on this fiber's own stack, allocating it on first use. `main` must not
  // return.
  void restart(void (*main)());
  // To be called first in `main`, and by the OS thread's fiber before it switches for the first time.
  void entered();
  void adopt_os_thread();
  // Leaves `from` and continues `to`. With `dying`, `from` is never continued.
  static void switch_to(Fiber& from, Fiber& to, bool dying = false);

 private:
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  char* stack_ = nullptr;
  // Sanitizer state: bounds of the stack in use, the fake stack (ASan), the fiber handle (TSan).
  const void* stack_bottom_ = nullptr;
  size_t stack_size_ = 0;
  void* fake_stack_ = nullptr;
  void* race_context_ = nullptr;
  bool owns_race_context_ = false;
};

}  // namespace cuda_on_cpu
