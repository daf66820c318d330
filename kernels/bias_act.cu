// Bias, noise and a piecewise-linear activation in one pass, and its gradient.
//   bias_act       y[p,c] = act(x[p,c] + (strength noise[p mod P'] + bias[c]))     act(v) = v (v > 0 ? up : down)
//   bias_act_grad  z[i]   = g[i] (y[i] > 0 ? up : down)
// Pixels p run over all samples; noise of one image (P' = H W) repeats over the batch. Bias and noise may be null.
// up = gain, down = gain slope. _f32 entries have x, g, y and z in f32, _bf16 entries in bf16; what is added is f32.
//
// Threads: 16 bytes of the channels of a pixel each where C and the addresses allow, else one element; grid-stride.
// Cost per element: 8 bytes (gradient 12), half of that in bf16, and 4 / C for the noise; 4 FLOP. Bound by memory.
// Numerics: the additions in the CPU's order; the strength times the noise may be fused with an addition. In bf16 the
// same in f32, rounded once when stored; rounding keeps the sign that bias_act_grad reads, but for values below 2^-134.
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

template <typename T>
struct BiasActPass {
  const T* x;
  const float* bias;
  const float* noise;
  float strength;
  T* y;
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

template <typename T>
__device__ __forceinline__ void bias_act(const T* x, const float* bias, const float* noise, const float* strength, T* y,
                                         const BiasActParams& p) {
  dependent_launch();
  const bool wide = p.channels % kLanes<T> == 0 && all_aligned16(x, bias, y);
  visit_elements<kLanes<T>>(p.count, wide, BiasActPass<T>{x, bias, noise, noise ? __ldca(strength) : 0.0f, y, p});
}

extern "C" __global__ void bias_act_f32(const float* x, const float* bias, const float* noise, const float* strength,
                                        float* y, BiasActParams p) {
  bias_act(x, bias, noise, strength, y, p);
}
extern "C" __global__ void bias_act_bf16(const bf16* x, const float* bias, const float* noise, const float* strength,
                                         bf16* y, BiasActParams p) {
  bias_act(x, bias, noise, strength, y, p);
}

template <typename T>
struct BiasActGradPass {
  const T* g;
  const T* y;
  T* z;
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

template <typename T>
__device__ __forceinline__ void bias_act_grad(const T* g, const T* y, T* z, const BiasActGradParams& p) {
  dependent_launch();
  visit_elements<kLanes<T>>(p.count, all_aligned16(g, y, z), BiasActGradPass<T>{g, y, z, p.up, p.down});
}

extern "C" __global__ void bias_act_grad_f32(const float* g, const float* y, float* z, BiasActGradParams p) {
  bias_act_grad(g, y, z, p);
}
extern "C" __global__ void bias_act_grad_bf16(const bf16* g, const bf16* y, bf16* z, BiasActGradParams p) {
  bias_act_grad(g, y, z, p);
}
