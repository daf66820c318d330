// Elastic weight consolidation on a whole parameter slab, in one pass.
//   penalty  = lambda/2 sum_i fisher_i (theta_i - anchor_i)^2
//   grad_i  += lambda fisher_i (theta_i - anchor_i)
// The anchor is a constant: no gradient flows into it.
//
// Threads: one block per chunk, four elements per thread and step; see slab.cuh.
// Cost per parameter: 20 bytes (theta, anchor, fisher, grad read; grad written) and 6 FLOP with the gradient; 12 bytes
// and 4 FLOP without. Bound by memory.
// Numerics: elements in f32, the penalty summed as slab.cuh says, in f64 beyond one thread.
// Launched by src/ops/optimizer/cuda.rs. optimizer.cu does the same inside Adam's pass.
#include "slab.cuh"

struct EwcPass {
  const float* theta;
  const float* anchor;
  const float* fisher;
  float* grad;  // null: the penalty alone
  float lambda;
  float sum = 0;  // of fisher (theta - anchor)^2

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) {
    const auto t = load_lanes<N>(theta, i), a = load_lanes<N>(anchor, i), f = load_lanes<N>(fisher, i);
    Lanes<N> g;
    if (grad) g = load_lanes<N>(grad, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) {
      const float distance = t.v[lane] - a.v[lane], weighted = f.v[lane] * distance;
      sum += weighted * distance;
      if (grad) g.v[lane] += lambda * weighted;
    }
    if (grad) store_lanes<N>(grad, i, g);
  }
};

__device__ __forceinline__ void run(EwcPass pass, const SlabChunk* chunks, double* partials, unsigned* arrivals,
                                    double* penalty) {
  dependent_launch();
  visit_chunk(chunks[blockIdx.x], pass);
  double total;
  if (slab_total(pass.sum, partials, arrivals, &total) && threadIdx.x == 0)
    *penalty = 0.5 * double(pass.lambda) * total;
}

extern "C" __global__ void __launch_bounds__(kSlabThreads)
    ewc_penalty_f32(const float* theta, const float* anchor, const float* fisher, const SlabChunk* chunks,
                    double* partials, unsigned* arrivals, double* penalty, float lambda) {
  run({theta, anchor, fisher, nullptr, lambda}, chunks, partials, arrivals, penalty);
}

extern "C" __global__ void __launch_bounds__(kSlabThreads)
    ewc_penalty_grad_f32(const float* theta, const float* anchor, const float* fisher, float* grad,
                         const SlabChunk* chunks, double* partials, unsigned* arrivals, double* penalty, float lambda) {
  run({theta, anchor, fisher, grad, lambda}, chunks, partials, arrivals, penalty);
}
