// Bias, noise and a piecewise-linear activation in one pass (epilogue.cuh), and the way back.
//   bias_act       y[p,c] = then(x[p,c])
//   bias_act_grad  h[i]   = g[i] (y[i] > 0 ? up : down)
//   epilogue_grad  h      as before, and over the pixels p of a sample and of a part of them
//                  F[c] = sum_p h[p,c], E[c] = sum_p h[p,c] noise[p], D[c] = sum_p g[p,c] y[p,c]
//   epilogue_grad_scale  from the sums of samples n and parts q:
//                  bias[c] = sum_n F, strength[c] = sum_n E, scale[n,c] = (D - strength E - bias F) / scale[n,c]
// up = gain, down = gain slope. _f32 entries have x, g, y and h in f32, _bf16 entries in bf16; all else is f32.
//
// Threads: 16 bytes of the channels of a pixel each where C and the addresses allow, else one element; grid-stride.
// epilogue_grad: column_sums.cuh, with 16 bytes in the _f32x4 and _bf16x8 entries. epilogue_grad_scale: a block has 16
// channels and 16 threads for each, which stride over the samples.
// Cost per element: 8 bytes (the way back 12), half of that in bf16, and 4 / C for the noise; 4 FLOP (7 with the sums).
// Bound by memory. epilogue_grad_scale reads 12 N C bytes for every part.
// Numerics: the additions in the CPU's order; the strength times the noise may be fused with an addition. In bf16 the
// same in f32, rounded once when stored; rounding keeps the sign that bias_act_grad reads, but for values below 2^-134.
// The sums are of h before it is rounded, in the order of column_sums.cuh.
// Launched by src/ops/bias_act/cuda.rs.
#include "column_sums.cuh"
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
  T* h;
  float up, down;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto v = load_lanes<N>(g, i);
    const auto out = load_lanes<N>(y, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) v.v[lane] *= out.v[lane] > 0.0f ? up : down;
    store_lanes<N>(h, i, v);
  }
};

template <typename T>
__device__ __forceinline__ void bias_act_grad(const T* g, const T* y, T* h, const BiasActGradParams& p) {
  dependent_launch();
  visit_elements<kLanes<T>>(p.count, all_aligned16(g, y, h), BiasActGradPass<T>{g, y, h, p.up, p.down});
}

extern "C" __global__ void bias_act_grad_f32(const float* g, const float* y, float* h, BiasActGradParams p) {
  bias_act_grad(g, y, h, p);
}
extern "C" __global__ void bias_act_grad_bf16(const bf16* g, const bf16* y, bf16* h, BiasActGradParams p) {
  bias_act_grad(g, y, h, p);
}

constexpr int kEpilogueSums = 3;  // F, E and D

template <typename T>
struct EpilogueGrad {
  const T* g;
  const T* y;
  T* h;
  const EpilogueParams& e;

  template <int N>
  __device__ __forceinline__ void add(Lanes<N> (&sum)[kEpilogueSums], int64_t at, int64_t pixel) const {
    const auto grad = load_lanes<N>(g, at), out = load_lanes<N>(y, at);
    const float noise = e.noise ? __ldca(e.noise + unsigned(pixel) % unsigned(e.noise_count)) : 0.0f;
    Lanes<N> between;
#pragma unroll
    for (int i = 0; i < N; i++) {
      between.v[i] = grad.v[i] * (out.v[i] > 0.0f ? e.up : e.down);
      sum[0].v[i] += between.v[i];
      sum[1].v[i] += between.v[i] * noise;
      sum[2].v[i] += grad.v[i] * out.v[i];
    }
    store_lanes<N>(h, at, between);
  }
};

// sums [samples, parts, 3, C]
extern "C" __global__ void __launch_bounds__(kSumThreads)
    epilogue_grad_f32(const float* g, const float* y, float* h, float* sums, SumParams p, EpilogueParams e) {
  column_sums<1, kEpilogueSums>(EpilogueGrad<float>{g, y, h, e}, sums, p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads)
    epilogue_grad_f32x4(const float* g, const float* y, float* h, float* sums, SumParams p, EpilogueParams e) {
  column_sums<4, kEpilogueSums>(EpilogueGrad<float>{g, y, h, e}, sums, p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads)
    epilogue_grad_bf16(const bf16* g, const bf16* y, bf16* h, float* sums, SumParams p, EpilogueParams e) {
  column_sums<1, kEpilogueSums>(EpilogueGrad<bf16>{g, y, h, e}, sums, p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads)
    epilogue_grad_bf16x8(const bf16* g, const bf16* y, bf16* h, float* sums, SumParams p, EpilogueParams e) {
  column_sums<8, kEpilogueSums>(EpilogueGrad<bf16>{g, y, h, e}, sums, p);
}

struct ScaleGradParams {
  int32_t samples, parts, channels;
};
static_assert(sizeof(ScaleGradParams) == 12, "keep in step with src/ops/bias_act/cuda.rs");
constexpr int kScaleRows = 16, kScaleChannels = kSumThreads / kScaleRows;

// Launched with kSumThreads. `to_scale` is [N, C]; `to_bias` and `to_strength` [C], the latter to be added up.
extern "C" __global__ void __launch_bounds__(kSumThreads)
    epilogue_grad_scale_f32(const float* sums, const float* scale, float* to_scale, float* to_bias, float* to_strength,
                            ScaleGradParams p, EpilogueParams e) {
  dependent_launch();
  const int lane = int(threadIdx.x) % kScaleChannels, row = int(threadIdx.x) / kScaleChannels;
  const int channel = int(blockIdx.x) * kScaleChannels + lane;
  float total[2] = {0.0f, 0.0f};
  if (channel < p.channels) {
    const float strength = e.noise ? __ldca(e.strength) : 0.0f, bias = e.bias ? __ldca(e.bias + channel) : 0.0f;
    for (int n = row; n < p.samples; n += kScaleRows) {
      float sum[kEpilogueSums] = {0.0f, 0.0f, 0.0f};
      for (int q = 0; q < p.parts; q++) {
        const float* of_part = sums + (int64_t(n) * p.parts + q) * kEpilogueSums * p.channels + channel;
#pragma unroll
        for (int k = 0; k < kEpilogueSums; k++) sum[k] += __ldcg(of_part + k * p.channels);
      }
      total[0] += sum[0];
      total[1] += sum[1];
      const int64_t at = int64_t(n) * p.channels + channel;
      to_scale[at] = (sum[2] - strength * sum[1] - bias * sum[0]) / __ldcg(scale + at);
    }
  }
  SHARED(float, totals, [2][1][kSumThreads]);
  totals[0][0][threadIdx.x] = total[0];
  totals[1][0][threadIdx.x] = total[1];
  add_rows(totals, row, lane, kScaleRows);
  if (row > 0 || channel >= p.channels) return;
  to_bias[channel] = totals[0][0][lane];
  to_strength[channel] = totals[1][0][lane];
}
