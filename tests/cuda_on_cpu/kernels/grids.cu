// Test kernels: grids that overlap (programmatic dependent launch), and their mutants.
//   y[i] = x[i] + 1
#include "common.cuh"

enum class Early { Nothing, Load, PlainLoad, AsyncLoad, Atomic, End };

template <Early kEarly>
__device__ void add_one(float* x, float* y) {
  const int64_t i = global_thread();
  SHARED(float, tile, [32]);
  SHARED(unsigned, count, [1]);
  float early = 0.0f;
  if (kEarly == Early::Load) early = __ldca(x + i);
  if (kEarly == Early::PlainLoad) early = x[i];
  if (kEarly == Early::AsyncLoad) ptx::cp_async4(&tile[threadIdx.x], x + i);
  if (kEarly == Early::Atomic) atomicExch(reinterpret_cast<int*>(y + i), 0);
  if (kEarly == Early::End && threadIdx.x == 5) return;
  // What is shared may be used before the wait.
  if (threadIdx.x == 0) count[0] = 0;
  __syncwarp();
  atomicAdd(&count[0], 1u);
  dependent_launch();
  __syncwarp();
  tile[threadIdx.x] = early == 0.0f ? x[i] : early;
  y[i] = tile[threadIdx.x] + float(count[0]) / float(blockDim.x);
}
extern "C" __global__ void __launch_bounds__(32) test_overlap(float* x, float* y) { add_one<Early::Nothing>(x, y); }
extern "C" __global__ void __launch_bounds__(32) mutant_early_load(float* x, float* y) { add_one<Early::Load>(x, y); }
extern "C" __global__ void __launch_bounds__(32) mutant_early_plain_load(float* x, float* y) {
  add_one<Early::PlainLoad>(x, y);
}
extern "C" __global__ void __launch_bounds__(32) mutant_early_async_load(float* x, float* y) {
  add_one<Early::AsyncLoad>(x, y);
}
extern "C" __global__ void __launch_bounds__(32) mutant_early_atomic(float* x, float* y) {
  add_one<Early::Atomic>(x, y);
}
extern "C" __global__ void __launch_bounds__(32) mutant_early_end(float* x, float* y) { add_one<Early::End>(x, y); }
