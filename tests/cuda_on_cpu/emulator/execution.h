// The execution model: grids of blocks of threads, shared memory, kernel entries.
//
// Every CUDA thread is a fiber. The fibers of one block share one OS thread and switch only where CUDA threads can
// wait for each other (barriers, warp collectives, mbarriers), so a run is deterministic for a given thread order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <type_traits>
#include <utility>

#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))
// A plain __shared__ array would have neither poison nor red zones: kernels declare shared memory with SHARED and
// DYNAMIC_SHARED.
#define __shared__ static_assert(false, "declare shared memory with SHARED() or DYNAMIC_SHARED()");

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
constexpr int warpSize = 32;

namespace cuda_on_cpu {

using Location = std::source_location;

// What a thread knows of itself.
struct Thread {
  uint3 index;
  int linear, lane, warp;
  bool early;  // launched to overlap the grids before it, and has not waited for them yet
};
// What the threads of a block have in common.
struct Block {
  uint3 index;
  dim3 grid, size;
};

// In a shared library the default TLS model costs a call per access; -mtls-dialect=gnu2 makes that call cheap, and
// the initial-exec model is not available to a library that is loaded at run time.
extern constinit thread_local Thread* current_thread;
extern constinit thread_local Block current_block;

// Ends the running block with an error that names the block and the thread. Does not return.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Before an access to memory that may be global: an early thread must not touch that.
void early_access(const void* address);
inline void check_access(const void* address) {
  if (current_thread->early) early_access(address);
}

// The calling thread has waited for the grids before its own.
void grids_waited();

// Shared memory of the running block. Each variable is a heap block of exactly its size, filled with 0xFF (a NaN in
// every float format) when the block starts: AddressSanitizer sees overruns and a read before a write gives NaN.
void* shared_variable(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();
// The 32-bit address that PTX instructions take, and back.
unsigned shared_address(const void* pointer);
void* shared_pointer(unsigned address);

// A kernel entry as the stand-in driver needs it: how to call it with an array of pointers to its parameters, and
// how large these are (a captured launch must copy them).
struct KernelEntry {
  const char* stem;
  const char* name;
  int max_threads;
  void (*call)(void** parameters);
  const size_t* parameter_sizes;
  size_t parameter_count;
};
struct Registration {
  explicit Registration(const KernelEntry& entry);
};

template <class Function>
struct Signature;
template <class... Parameter>
struct Signature<void (*)(Parameter...)> {
  static constexpr size_t count = sizeof...(Parameter);
  static constexpr size_t sizes[count + 1] = {sizeof(Parameter)...};

  template <auto kernel>
  static void call(void** parameters) {
    call_with<kernel>(parameters, std::index_sequence_for<Parameter...>{});
  }

 private:
  template <auto kernel, size_t... I>
  static void call_with([[maybe_unused]] void** parameters, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<Parameter>*>(parameters[I])...);
  }
};

constexpr int launch_bound(int max_threads = 1024, int = 0) { return max_threads; }

}  // namespace cuda_on_cpu

namespace ptx {

// Grids run one after another here, as they may on a device. Where a launch allows more, a thread that does not wait is
// an error all the same.
inline void griddepcontrol_launch_dependents() {}
inline void griddepcontrol_wait() { cuda_on_cpu::grids_waited(); }

}  // namespace ptx

#define threadIdx (::cuda_on_cpu::current_thread->index)
#define blockIdx (::cuda_on_cpu::current_block.index)
#define blockDim (::cuda_on_cpu::current_block.size)
#define gridDim (::cuda_on_cpu::current_block.grid)

// SHARED(float, tile, [64][65]): one variable per block and per place in the source.
#define SHARED(T, name, ...)                                                                             \
  auto& name = *[] {                                                                                     \
    static constexpr char key = 0;                                                                       \
    return static_cast<T(*) __VA_ARGS__>(                                                                \
        ::cuda_on_cpu::shared_variable(&key, sizeof(T __VA_ARGS__), alignof(T) < 16 ? 16 : alignof(T))); \
  }()
#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::cuda_on_cpu::dynamic_shared())

// The build writes one of these for each `extern "C" __global__` function it finds, behind the source itself.
#define CUDA_ON_CPU_ENTRY(stem, kernel, ...)                           \
  static const ::cuda_on_cpu::Registration cuda_on_cpu_entry_##kernel( \
      {stem, #kernel, ::cuda_on_cpu::launch_bound(__VA_ARGS__),        \
       &::cuda_on_cpu::Signature<decltype(&kernel)>::call<&kernel>,    \
       ::cuda_on_cpu::Signature<decltype(&kernel)>::sizes, ::cuda_on_cpu::Signature<decltype(&kernel)>::count});
