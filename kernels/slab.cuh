// Single passes over parameter slabs: the loop, and sums in a fixed order.
//
// A slab is one contiguous f32 buffer; slabs of one network share their layout. The host cuts it into chunks, each
// inside one named tensor, so that a per-tensor weight is one number per block:
//   grid = number of chunks, one block of kSlabThreads per chunk; every slab is aligned to 16 bytes.
// Elements are moved four at a time; up to three before the first multiple of four, and after the last, one by one.
//
// Sums: f32 within a thread (chunk / 256 elements), f64 across threads, warps and chunks, each level in a fixed order.
// The last block to finish adds the chunks up, so a pass is one launch; the result does not depend on which block
// that is.
#pragma once
#include "common.cuh"

constexpr int kSlabThreads = 256;

struct SlabChunk {
  int64_t begin;  // in elements
  int32_t count;
  float weight;    // of this chunk's tensor in the repulsion distance
  int32_t tensor;  // which tensor it lies in
  int32_t first;   // and where it begins there
  int64_t shadow;  // where it begins in the slab's low-precision copy; negative: it is not in it
};
static_assert(sizeof(SlabChunk) == 32, "keep in step with src/ops/optimizer/cuda.rs");

// Calls pass.template visit<N>(i) for all elements of the chunk, with N = 4 at multiples of four and N = 1 elsewhere.
template <typename Pass>
__device__ __forceinline__ void visit_chunk(const SlabChunk& chunk, Pass& pass) {
  const int64_t end = chunk.begin + chunk.count;
  const int64_t body = min((chunk.begin + 3) / 4 * 4, end), tail = max(end / 4 * 4, body);
  for (int64_t i = body + 4 * int64_t(threadIdx.x); i < tail; i += 4 * kSlabThreads) pass.template visit<4>(i);
  const int64_t head_count = body - chunk.begin;  // at most three, as is the tail
  if (threadIdx.x < head_count) pass.template visit<1>(chunk.begin + threadIdx.x);
  if (threadIdx.x < end - tail) pass.template visit<1>(tail + threadIdx.x);
}

// Where the gradient of each tensor lies. Passes read it there, so it is never gathered into a slab.
constexpr int kMostTensors = 256;
struct Gradients {
  const float* of[kMostTensors];
};
static_assert(sizeof(Gradients) == 2048, "keep in step with src/ops/optimizer/cuda.rs");

// The gradient of one chunk, by the slab's indices. Where its alignment is not the slab's, it is read one by one.
struct ChunkGradient {
  const float* origin;
  bool wide;

  __device__ __forceinline__ ChunkGradient(const Gradients& gradients, const SlabChunk& chunk)
      : origin(gradients.of[chunk.tensor] + (int64_t(chunk.first) - chunk.begin)), wide(all_aligned16(origin)) {}

  template <int N>
  __device__ __forceinline__ Lanes<N> load(int64_t i) const {
    if constexpr (N == 1) {
      return load_lanes<1>(origin, i);
    } else {
      if (wide) return load_lanes<N>(origin, i);
      Lanes<N> lanes;
#pragma unroll
      for (int lane = 0; lane < N; lane++) lanes.v[lane] = __ldcg(origin + i + lane);
      return lanes;
    }
  }
};

// Adds the threads' sums up over the grid. True in the block that has the total, which is then the same in all its
// threads. `partials` holds one double per chunk.
__device__ __forceinline__ bool slab_total(float thread_sum, double* partials, unsigned* arrivals, double* total) {
  double chunk_sum = block_sum<kSlabThreads>(double(thread_sum));
  if (threadIdx.x == 0) __stcg(partials + blockIdx.x, chunk_sum);
  if (!is_last_block(arrivals)) return false;
  double sum = 0;
  for (unsigned chunk = threadIdx.x; chunk < gridDim.x; chunk += kSlabThreads) sum += __ldcg(partials + chunk);
  *total = block_sum<kSlabThreads>(sum);
  return true;
}
