// Bias, noise and a piecewise-linear activation in one pass, and its gradient.
//   bias_act       y[p,c] = act(x[p,c] + (strength noise[p mod P'] + bias[c]))     act(v) = v (v > 0 ? up : down)
//   bias_act_grad  z[i]   = g[i] (y[i] > 0 ? up : down)
// Pixels p run over all samples; noise of one image (P' = H W) repeats over the batch. Bias and noise may be null.
// up = gain, down = gain slope.
//
// Threads: four channels of a pixel each where C and the addresses allow, else one element; grid-stride.
// Cost per element: 8 bytes (gradient 12), and 4 / C for the noise; 4 FLOP. Bound by memory.
// Numerics: the additions in the CPU's order; the strength times the noise may be fused with an addition.
// Launched by src/ops/bias_act/cuda.rs.
#include "common.cuh"

struct BiasActParams {
  int32_t count;
  int32_t channels;
  int32_t noise_count;  // P'
  float up, down;
};
static_assert(sizeof(BiasActParams) == 20, "keep in step with src/ops/bias_act/cuda.rs");

struct BiasActGradParams {
  int32_t count;
  float up, down;
};
static_assert(sizeof(BiasActGradParams) == 12, "keep in step with src/ops/bias_act/cuda.rs");

struct BiasActPass {
  const float* x;
  const float* bias;
  const float* noise;
  float strength;
  float* y;
  BiasActParams p;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto v = load_lanes<N>(x, i);
    const unsigned at = unsigned(i), pixel = at / unsigned(p.channels), channel = at % unsigned(p.channels);
    Lanes<N> b{};
    if (bias) b = load_lanes<N>(bias, channel);
    const float shift = noise ? strength * __ldca(noise + pixel % unsigned(p.noise_count)) : 0.0f;
#pragma unroll
    for (int lane = 0; lane < N; lane++) {
      const float sum = v.v[lane] + (shift + b.v[lane]);
      v.v[lane] = sum * (sum > 0.0f ? p.up : p.down);
    }
    store_lanes<N>(y, i, v);
  }
};

extern "C" __global__ void bias_act_f32(const float* x, const float* bias, const float* noise, const float* strength,
                                        float* y, BiasActParams p) {
  dependent_launch();
  const bool wide = p.channels % 4 == 0 && all_aligned16(x, bias, y);
  visit_elements(p.count, wide, BiasActPass{x, bias, noise, noise ? __ldca(strength) : 0.0f, y, p});
}

struct BiasActGradPass {
  const float* g;
  const float* y;
  float* z;
  float up, down;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto v = load_lanes<N>(g, i);
    const auto out = load_lanes<N>(y, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) v.v[lane] *= out.v[lane] > 0.0f ? up : down;
    store_lanes<N>(z, i, v);
  }
};

extern "C" __global__ void bias_act_grad_f32(const float* g, const float* y, float* z, BiasActGradParams p) {
  dependent_launch();
  visit_elements(p.count, all_aligned16(g, y, z), BiasActGradPass{g, y, z, p.up, p.down});
}
