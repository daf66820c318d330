// One optimiser step on a whole parameter slab, in one pass and one launch.
//   g      = grad + regulariser's gradient                 EWC:       lambda fisher (theta - anchor)
//                                                          repulsion: scale w_t (theta - centroid), scale = R'(V) 2 k
//                                                          L1:        strength sign(theta), sign(0) = 1
//   m      = beta1 m + (1 - beta1) g                       without a first moment (beta1 = 0): m = g
//   v      = beta2 v + (1 - beta2) g^2
//   theta -= learning_rate / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + epsilon)
//   ema    = decay ema + (1 - decay) theta                 where there is an average
//   shadow = bf16(theta)                                   of the tensors that have a low-precision copy
// and, while theta is in registers, the regulariser's value: at the new theta what the next step needs (repulsion), at
// the old one what belongs to this step's loss (EWC, L1).
//   accumulate_squares   sum_i += weight grad_i^2          how squared gradients of samples become a Fisher diagonal
// The gradients are one tensor each, wherever they lie.
//
// Threads: one block per chunk, four elements per thread and step; see slab.cuh. The last block advances beta^t, so a
// replayed graph counts its steps.
// Cost per parameter, in bytes: theta 8, grad 4, v 8; plus m 8, ema 8, shadow 2; plus EWC 8 (anchor, fisher) or
// repulsion 4 (centroid), L1 nothing. StyleGAN2 (beta1 = 0) with average: 28, with EWC 36, with repulsion 32. About 15
// FLOP. Bound by memory.
// Numerics: f32; powers of beta in f64; sums as slab.cuh says. bf16 is rounded to nearest even.
// Launched by src/ops/optimizer/cuda.rs.
#include "repulsion.cuh"

struct AdamParams {
  float beta1, beta2, epsilon;
  int32_t regularise;  // 0: the regulariser's value is made and its gradient left out (path-length steps)
};
static_assert(sizeof(AdamParams) == 16, "keep in step with src/ops/optimizer/cuda.rs");

// In device memory. Before step t the host or the last step has left there what step t uses.
struct AdamState {
  double beta1_power, beta2_power;      // beta^t
  float learning_rate, ema_decay;       // written by the host
  float correction1, sqrt_correction2;  // 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};
static_assert(sizeof(AdamState) == 32, "keep in step with src/ops/optimizer/cuda.rs");

__device__ __forceinline__ void advance(AdamState* state, const AdamParams& p) {
  state->beta1_power *= double(p.beta1);
  state->beta2_power *= double(p.beta2);
  state->correction1 = float(1.0 / (1.0 - state->beta1_power));
  state->sqrt_correction2 = float(1.0 / sqrt(1.0 - state->beta2_power));
}

// Regularisers: the gradient and the value of four elements or one. `value` is not weighted by constants; kValueBefore
// says whether it is taken at the theta before or after the step.
struct NoRegulariser {
  static constexpr bool kValueBefore = false;
  template <int N>
  struct Streams {};
  template <int N>
  __device__ Streams<N> load(int64_t) const {
    return {};
  }
  template <int N>
  __device__ float gradient(const Streams<N>&, int, float) const {
    return 0.0f;
  }
  template <int N>
  __device__ float value(const Streams<N>&, int, float) const {
    return 0.0f;
  }
};

struct Ewc {
  static constexpr bool kValueBefore = true;
  const float* anchor;
  const float* fisher;
  float lambda;
  template <int N>
  struct Streams {
    Lanes<N> anchor, fisher;
  };
  template <int N>
  __device__ Streams<N> load(int64_t i) const {
    return {load_lanes<N>(anchor, i), load_lanes<N>(fisher, i)};
  }
  template <int N>
  __device__ float gradient(const Streams<N>& s, int lane, float theta) const {
    return lambda * (s.fisher.v[lane] * (theta - s.anchor.v[lane]));
  }
  template <int N>
  __device__ float value(const Streams<N>& s, int lane, float theta) const {
    const float distance = theta - s.anchor.v[lane];
    return s.fisher.v[lane] * distance * distance;
  }
};

struct L1 {
  static constexpr bool kValueBefore = true;
  float strength;
  template <int N>
  struct Streams {};
  template <int N>
  __device__ Streams<N> load(int64_t) const {
    return {};
  }
  template <int N>
  __device__ float gradient(const Streams<N>&, int, float theta) const {
    return copysignf(strength, theta);
  }
  template <int N>
  __device__ float value(const Streams<N>&, int, float theta) const {
    return fabsf(theta);
  }
};

struct Repulsion {
  static constexpr bool kValueBefore = false;
  const float* centroid;
  float scale;  // with the weight of the chunk's tensor
  template <int N>
  struct Streams {
    Lanes<N> centroid;
  };
  template <int N>
  __device__ Streams<N> load(int64_t i) const {
    return {load_lanes<N>(centroid, i)};
  }
  template <int N>
  __device__ float gradient(const Streams<N>& s, int lane, float theta) const {
    return scale * (theta - s.centroid.v[lane]);
  }
  template <int N>
  __device__ float value(const Streams<N>& s, int lane, float theta) const {
    const float distance = theta - s.centroid.v[lane];
    return distance * distance;
  }
};

// What every entry takes. m, ema and shadow may be null.
struct AdamSlabs {
  float* theta;
  float* m;
  float* v;
  float* ema;
  __nv_bfloat16* shadow;
};

// The low-precision copy of one chunk, by the slab's indices. Its tensors begin where TMA can read them, so four
// elements of the slab need not be aligned in it.
struct ChunkShadow {
  __nv_bfloat16* origin;
  bool wide;

  __device__ __forceinline__ ChunkShadow(__nv_bfloat16* shadow, const SlabChunk& chunk)
      : origin(shadow && chunk.shadow >= 0 ? shadow + (chunk.shadow - chunk.begin) : nullptr),
        wide(reinterpret_cast<uintptr_t>(origin) % (4 * sizeof(__nv_bfloat16)) == 0) {}

  template <int N>
  __device__ __forceinline__ void store(int64_t i, const Lanes<N>& lanes) const {
    if (!origin) return;
    if (N == 1 || wide) {
      store_lanes<N>(origin, i, lanes);
    } else {
#pragma unroll
      for (int lane = 0; lane < N; lane++) store_lanes<1>(origin, i + lane, Lanes<1>{{lanes.v[lane]}});
    }
  }
};

template <typename Regulariser>
struct AdamPass {
  AdamSlabs slabs;
  ChunkGradient gradient;
  ChunkShadow shadow;
  Regulariser regulariser;
  AdamParams p;
  float step_size, sqrt_correction2, ema_decay;
  float sum = 0;  // of the regulariser's value

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) {
    auto theta = load_lanes<N>(slabs.theta, i);
    const auto grad = gradient.template load<N>(i);
    auto v = load_lanes<N>(slabs.v, i);
    const auto streams = regulariser.template load<N>(i);
    Lanes<N> m{}, ema{};
    if (slabs.m) m = load_lanes<N>(slabs.m, i);
    if (slabs.ema) ema = load_lanes<N>(slabs.ema, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) {
      float g = grad.v[lane];
      if constexpr (Regulariser::kValueBefore) sum += regulariser.template value<N>(streams, lane, theta.v[lane]);
      if (p.regularise) g += regulariser.template gradient<N>(streams, lane, theta.v[lane]);
      m.v[lane] = slabs.m ? p.beta1 * m.v[lane] + (1.0f - p.beta1) * g : g;
      v.v[lane] = p.beta2 * v.v[lane] + (1.0f - p.beta2) * (g * g);
      theta.v[lane] -= step_size * m.v[lane] / (sqrtf(v.v[lane]) * sqrt_correction2 + p.epsilon);
      ema.v[lane] = ema_decay * ema.v[lane] + (1.0f - ema_decay) * theta.v[lane];
      if constexpr (!Regulariser::kValueBefore) sum += regulariser.template value<N>(streams, lane, theta.v[lane]);
    }
    store_lanes<N>(slabs.theta, i, theta);
    store_lanes<N>(slabs.v, i, v);
    if (slabs.m) store_lanes<N>(slabs.m, i, m);
    if (slabs.ema) store_lanes<N>(slabs.ema, i, ema);
    shadow.store<N>(i, theta);
  }
};

// Runs the block's chunk and gives the sum of this thread.
template <typename Regulariser>
__device__ __forceinline__ float step(const AdamSlabs& slabs, const Gradients& gradients,
                                      const Regulariser& regulariser, const SlabChunk& chunk, const AdamState& state,
                                      const AdamParams& p) {
  AdamPass<Regulariser> pass{
      slabs, ChunkGradient(gradients, chunk),         ChunkShadow(slabs.shadow, chunk), regulariser,
      p,     state.learning_rate * state.correction1, state.sqrt_correction2,           state.ema_decay,
  };
  visit_chunk(chunk, pass);
  return pass.sum;
}

extern "C" __global__ void __launch_bounds__(kSlabThreads)
    adam_f32(float* theta, const __grid_constant__ Gradients gradients, float* m, float* v, float* ema,
             __nv_bfloat16* shadow, const SlabChunk* chunks, unsigned* arrivals, AdamState* state, AdamParams p) {
  dependent_launch();
  step(AdamSlabs{theta, m, v, ema, shadow}, gradients, NoRegulariser{}, chunks[blockIdx.x], *state, p);
  if (is_last_block(arrivals) && threadIdx.x == 0) advance(state, p);
}

// `penalty` becomes lambda/2 sum fisher (theta - anchor)^2 at the theta before the step.
extern "C" __global__ void __launch_bounds__(kSlabThreads)
    adam_ewc_f32(float* theta, const __grid_constant__ Gradients gradients, float* m, float* v, float* ema,
                 __nv_bfloat16* shadow, const SlabChunk* chunks, unsigned* arrivals, AdamState* state, AdamParams p,
                 const float* anchor, const float* fisher, double* partials, double* penalty, float lambda) {
  dependent_launch();
  const Ewc ewc{anchor, fisher, lambda};
  const float sum = step(AdamSlabs{theta, m, v, ema, shadow}, gradients, ewc, chunks[blockIdx.x], *state, p);
  double total;
  if (!slab_total(sum, partials, arrivals, &total) || threadIdx.x != 0) return;
  *penalty = 0.5 * double(lambda) * total;
  advance(state, p);
}

// `norm` becomes sum |theta| before the step.
extern "C" __global__ void __launch_bounds__(kSlabThreads)
    adam_l1_f32(float* theta, const __grid_constant__ Gradients gradients, float* m, float* v, float* ema,
                __nv_bfloat16* shadow, const SlabChunk* chunks, unsigned* arrivals, AdamState* state, AdamParams p,
                double* partials, double* norm, float strength) {
  dependent_launch();
  const float sum = step(AdamSlabs{theta, m, v, ema, shadow}, gradients, L1{strength}, chunks[blockIdx.x], *state, p);
  double total;
  if (!slab_total(sum, partials, arrivals, &total) || threadIdx.x != 0) return;
  *norm = total;
  advance(state, p);
}

// Uses repulsion->gradient_scale, which belongs to the theta at entry, and leaves there what belongs to the new one.
extern "C" __global__ void __launch_bounds__(kSlabThreads)
    adam_repulsion_f32(float* theta, const __grid_constant__ Gradients gradients, float* m, float* v, float* ema,
                       __nv_bfloat16* shadow, const SlabChunk* chunks, unsigned* arrivals, AdamState* state,
                       AdamParams p, const float* centroid, double* partials, RepulsionState* repulsion,
                       RepulsionParams repulsion_params) {
  dependent_launch();
  const SlabChunk chunk = chunks[blockIdx.x];
  const Repulsion away{centroid, repulsion->gradient_scale * chunk.weight};
  const float sum = step(AdamSlabs{theta, m, v, ema, shadow}, gradients, away, chunk, *state, p);
  double total;
  if (!slab_total(chunk.weight * sum, partials, arrivals, &total) || threadIdx.x != 0) return;
  update_repulsion(repulsion, repulsion_params, total);
  advance(state, p);
}

struct SquaresPass {
  float* sum;
  ChunkGradient gradient;
  float weight;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto s = load_lanes<N>(sum, i);
    const auto g = gradient.template load<N>(i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) s.v[lane] += weight * g.v[lane] * g.v[lane];
    store_lanes<N>(sum, i, s);
  }
};

extern "C" __global__ void __launch_bounds__(kSlabThreads)
    accumulate_squares_f32(float* sum, const __grid_constant__ Gradients gradients, const SlabChunk* chunks,
                           float weight) {
  dependent_launch();
  const SlabChunk chunk = chunks[blockIdx.x];
  SquaresPass pass{sum, ChunkGradient(gradients, chunk), weight};
  visit_chunk(chunk, pass);
}
