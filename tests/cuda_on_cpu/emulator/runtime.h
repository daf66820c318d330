// What the parts of the emulator share, and kernels do not see.
#pragma once
#include "cuda_on_cpu.h"
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#ifndef __has_feature
#  define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#  define CUDA_ON_CPU_ASAN 1
#  include <sanitizer/asan_interface.h>
#  include <sanitizer/common_interface_defs.h>
#endif
// Under ThreadSanitizer only kernels are instrumented, so the build says which runtime it is. The runtime tells the
// sanitizer what CUDA orders (barriers, block start and end) and hides its own accesses.
#ifdef CUDA_ON_CPU_TSAN
#  include <sanitizer/tsan_interface.h>
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();
#endif

namespace cuda_on_cpu {

inline void happens_before([[maybe_unused]] void* tag) {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_release(tag);
#endif
}
inline void happens_after([[maybe_unused]] void* tag) {
#ifdef CUDA_ON_CPU_TSAN
  __tsan_acquire(tag);
#endif
}
struct HiddenFromRaceCheck {
#ifdef CUDA_ON_CPU_TSAN
  HiddenFromRaceCheck() { __tsan_ignore_thread_begin(); }
  ~HiddenFromRaceCheck() { __tsan_ignore_thread_end(); }
#else
  HiddenFromRaceCheck() {}
#endif
};

constexpr unsigned char kPoison = 0xff;  // a NaN in every float format

// How the threads of a block take turns, and the blocks of a grid.
enum class Order : int { Ascending = 0, Descending = 1, Shuffled = 2 };
struct Schedule {
  Order order = Order::Ascending;
  uint64_t seed = 1;
};
// The schedule of launches made by the calling OS thread.
Schedule& schedule();

// A warpgroup product, shared by the 128 threads that issued it, executed once.
struct WarpgroupProduct {
  float* accumulators[128];
  int n;
  WgmmaOperand a, b;
  bool accumulate, done = false;
};
// Asynchronous work of one thread: what is open, and the groups it has committed, oldest first.
struct AsyncQueues {
  std::vector<AsyncCopy> open_copies;
  std::deque<std::vector<AsyncCopy>> copy_groups;
  std::vector<AsyncCopy> due_copies;
  std::vector<std::shared_ptr<WarpgroupProduct>> open_products;
  std::deque<std::vector<std::shared_ptr<WarpgroupProduct>>> product_groups;
  void clear() { *this = AsyncQueues(); }
};
AsyncQueues& async_queues();

// Suspends the calling thread until the condition holds.
using Condition = bool (*)(const void* object, int argument);
void wait_until(Condition condition, const void* object, int argument, const char* what, Location location);
// Work of the asynchronous copy engine: runs when a thread next waits, or when no thread can run.
void defer(std::function<void()> work);

const KernelEntry* find_kernel(const std::string& name);

struct LaunchGeometry {
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  bool overlaps = false;  // whether it was launched to overlap the grids before it
};
// Runs a whole grid. Returns the error text, empty when all went well.
std::string launch(const KernelEntry& kernel, const LaunchGeometry& geometry, void** parameters);

// Under AddressSanitizer device memory can be put out of reach of everybody, so that an early thread's access is found
// even where the emulator has no part in it. Elsewhere without effect.
void hide_device_memory(bool hidden);

// Limits of the chip that is modelled (H100/H200).
constexpr size_t kMaxSharedPerBlock = 227 * 1024;
constexpr size_t kMaxStaticShared = 48 * 1024;
constexpr unsigned kMaxThreadsPerBlock = 1024;

}  // namespace cuda_on_cpu
