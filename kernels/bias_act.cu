// Bias, noise and a piecewise-linear activation in one pass (epilogue.cuh), and its gradient.
//   bias_act       y[p,c] = then(x[p,c])
//   bias_act_grad  z[i]   = g[i] (y[i] > 0 ? up : down)
// up = gain, down = gain slope. _f32 entries have x, g, y and z in f32, _bf16 entries in bf16; what is added is f32.
//
// Threads: 16 bytes of the channels of a pixel each where C and the addresses allow, else one element; grid-stride.
// Cost per element: 8 bytes (gradient 12), half of that in bf16, and 4 / C for the noise; 4 FLOP. Bound by memory.
// Numerics: the additions in the CPU's order; the strength times the noise may be fused with an addition. In bf16 the
// same in f32, rounded once when stored; rounding keeps the sign that bias_act_grad reads, but for values below 2^-134.
// Launched by src/ops/bias_act/cuda.rs.
#include "epilogue.cuh"

struct BiasActGradParams {
  int32_t count;
  float up, down;
};
static_assert(sizeof(BiasActGradParams) == 12, "keep in step with src/ops/bias_act/cuda.rs");

template <typename T>
struct BiasActPass {
  const T* x;
  T* y;
  unsigned channels;
  Epilogue then;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto v = load_lanes<N>(x, i);
    then.apply(v, int(unsigned(i) / channels), int(unsigned(i) % channels));
    store_lanes<N>(y, i, v);
  }
};

template <typename T>
__device__ __forceinline__ void bias_act(const T* x, T* y, int count, int channels, const EpilogueParams& e) {
  dependent_launch();
  const bool wide = channels % kLanes<T> == 0 && all_aligned16(x, e.bias, y);
  visit_elements<kLanes<T>>(count, wide, BiasActPass<T>{x, y, unsigned(channels), Epilogue(e)});
}

extern "C" __global__ void bias_act_f32(const float* x, float* y, int count, int channels, EpilogueParams e) {
  bias_act(x, y, count, channels, e);
}
extern "C" __global__ void bias_act_bf16(const bf16* x, bf16* y, int count, int channels, EpilogueParams e) {
  bias_act(x, y, count, channels, e);
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
