// Test kernels: barriers, warp collectives, cp.async. Each correct kernel stands beside its mutants, which differ in
// the one thing their name says and which the emulator must catch.
#include "common.cuh"

// y[i] = the sum over the block of x, for a block of 256; through shared memory and shuffles.
extern "C" __global__ void __launch_bounds__(256) test_block_sum(const float* x, float* y) {
  y[global_thread()] = block_sum<256>(x[global_thread()]);
}

// y = x reversed within tiles of 64 threads.
enum class Barrier { Full, Missing, Divergent };
template <Barrier kBarrier>
__device__ void reverse(const float* x, float* y) {
  SHARED(float, tile, [64]);
  tile[threadIdx.x] = x[global_thread()];
  if (kBarrier == Barrier::Full) __syncthreads();
  if (kBarrier == Barrier::Divergent) {
    if (threadIdx.x < 32)
      __syncthreads();
    else
      __syncthreads();
  }
  y[global_thread()] = tile[63 - threadIdx.x];
}
extern "C" __global__ void test_reverse(const float* x, float* y) { reverse<Barrier::Full>(x, y); }
extern "C" __global__ void mutant_missing_barrier(const float* x, float* y) { reverse<Barrier::Missing>(x, y); }
extern "C" __global__ void mutant_divergent_barrier(const float* x, float* y) { reverse<Barrier::Divergent>(x, y); }

// A barrier that half of the block never reaches: it waits for the other half, which waits for it in the warp.
extern "C" __global__ void mutant_deadlock(float* y) {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncwarp();
  y[threadIdx.x] = 1.0f;
}

// Lane 0 is asked for its value without taking part.
extern "C" __global__ void mutant_shuffle_from_outside(float* y) {
  if (threadIdx.x > 0) y[threadIdx.x] = __shfl_sync(0xfffffffeu, 1.0f, 0);
}

// One launch of shuffles, votes and reductions, as bits of y[lane].
extern "C" __global__ void test_warp_collectives(const int* x, int* y) {
  int lane = threadIdx.x, value = x[lane];
  y[lane] = __shfl_sync(kAllLanes, value, 5);
  y[32 + lane] = __shfl_xor_sync(kAllLanes, value, 3);
  y[64 + lane] = __shfl_down_sync(kAllLanes, value, 4, 16);
  y[96 + lane] = __shfl_up_sync(kAllLanes, value, 2);
  y[128 + lane] = int(__ballot_sync(kAllLanes, value % 3 == 0));
  y[160 + lane] = __all_sync(kAllLanes, value >= 0) + 2 * __any_sync(kAllLanes, value == 7);
  y[192 + lane] = int(__reduce_add_sync(kAllLanes, unsigned(value)));
  y[224 + lane] = __syncthreads_count(value % 2);
  // Two halves of a warp at once, each among itself.
  unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  y[256 + lane] = int(__reduce_max_sync(half, unsigned(value)));
}

// y = x through shared memory, 16 bytes at a time.
template <bool kWait>
__device__ void copy_async(const float* x, float* y) {
  SHARED(float4, tile, [32]);
  ptx::cp_async16(&tile[threadIdx.x], x + 4 * threadIdx.x, threadIdx.x < 31);
  ptx::cp_async_commit();
  if (kWait) ptx::cp_async_wait<0>();
  reinterpret_cast<float4*>(y)[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void test_copy_async(const float* x, float* y) { copy_async<true>(x, y); }
extern "C" __global__ void mutant_missing_async_wait(const float* x, float* y) { copy_async<false>(x, y); }

// Out of bounds by one, of each kind of memory. The index comes from outside, so that no compiler sees it.
extern "C" __global__ void mutant_global_overrun(float* y, int n) { y[n] = 1.0f; }
extern "C" __global__ void mutant_shared_overrun(float* y, int n) {
  SHARED(float, tile, [8]);
  tile[n] = 1.0f;
  y[0] = tile[n];
}
// The host must ask for n floats of dynamic shared memory.
extern "C" __global__ void test_dynamic_shared(float* y, int n) {
  DYNAMIC_SHARED(float, tile);
  if (threadIdx.x == 0)
    for (int i = 0; i < n; i++) tile[i] = float(i);
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}
// Reads what nobody has written.
extern "C" __global__ void mutant_uninitialised_shared(float* y) {
  SHARED(float, tile, [32]);
  y[threadIdx.x] = tile[threadIdx.x];
}
// Two threads write one address without order.
extern "C" __global__ void mutant_shared_race(float* y) {
  SHARED(float, cell, [1]);
  cell[0] = float(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = cell[0];
}
// Adds a number of blocks up in whatever order they come: x = x * 3 + block.
extern "C" __global__ void mutant_order_of_blocks(float* x) { x[0] = x[0] * 3.0f + float(blockIdx.x); }
