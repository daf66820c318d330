// Repulsion from k adapted models, through their centroid.
//   V   = sum_j sum_t w_t |theta_t - theta_{j,t}|^2  =  k sum_t w_t |theta_t - centroid_t|^2 + spread
//   R   = gamma exp(-alpha V)   exponential (EL2)
//         -gamma V              negative    (NL2)
//         gamma / V             inverse     (IL2)
//   dR/dtheta_i = R'(V) 2 k w_t (theta_i - centroid_i)
// t runs over tensors, w_t is the weight of the distance (1 for L2). The identity makes any number of models cost one
// stream. The spread is k runs of repulsion_norm_f32 on (theta_j, centroid) with models = 1, spread = 0, kind none,
// which leaves the sum in state->distance.
//
// Threads: one block per chunk, four elements per thread and step; see slab.cuh.
// Cost per parameter: norm 8 bytes (theta, centroid) and 3 FLOP; gradient 16 bytes (theta, centroid, grad read, grad
// written) and 3 FLOP. Bound by memory. optimizer.cu does both inside Adam's pass for 4 bytes.
// Numerics: the distance is summed as slab.cuh says; V, R and R' are f64, the scale of the gradient is rounded to f32.
// Launched by src/ops/optimizer/cuda.rs.
#include "repulsion.cuh"

struct NormPass {
  const float* theta;
  const float* centroid;
  float sum = 0;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) {
    const auto t = load_lanes<N>(theta, i), c = load_lanes<N>(centroid, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) {
      const float distance = t.v[lane] - c.v[lane];
      sum += distance * distance;
    }
  }
};

struct GradPass {
  const float* theta;
  const float* centroid;
  float* grad;
  float scale;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) {
    const auto t = load_lanes<N>(theta, i), c = load_lanes<N>(centroid, i);
    auto g = load_lanes<N>(grad, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) g.v[lane] += scale * (t.v[lane] - c.v[lane]);
    store_lanes<N>(grad, i, g);
  }
};

extern "C" __global__ void __launch_bounds__(kSlabThreads)
    repulsion_norm_f32(const float* theta, const float* centroid, const SlabChunk* chunks, double* partials,
                       unsigned* arrivals, RepulsionState* state, RepulsionParams p) {
  dependent_launch();
  const SlabChunk chunk = chunks[blockIdx.x];
  NormPass pass{theta, centroid};
  visit_chunk(chunk, pass);
  double total;
  if (slab_total(chunk.weight * pass.sum, partials, arrivals, &total) && threadIdx.x == 0)
    update_repulsion(state, p, total);
}

extern "C" __global__ void __launch_bounds__(kSlabThreads)
    repulsion_grad_f32(const float* theta, const float* centroid, float* grad, const SlabChunk* chunks,
                       const RepulsionState* state) {
  dependent_launch();
  const SlabChunk chunk = chunks[blockIdx.x];
  GradPass pass{theta, centroid, grad, state->gradient_scale * chunk.weight};
  visit_chunk(chunk, pass);
}
