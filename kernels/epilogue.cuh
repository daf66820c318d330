// What follows another op in the same pass: act(v + (strength noise[p mod P'] + bias[c])), act(v) = v (v > 0 ? up :
// down). Pixels p run over all samples; noise of one image (P' = H W) repeats over the batch.
#pragma once
#include "common.cuh"

// Null pointers leave their term out.
struct EpilogueParams {
  const float* bias;      // [C]
  const float* noise;     // [P']
  const float* strength;  // one number
  int32_t noise_count;    // P'
  float up, down;
  int32_t padding;
};
static_assert(sizeof(EpilogueParams) == 40, "keep in step with src/ops/bias_act/cuda.rs");

struct Epilogue {
  const EpilogueParams& e;
  float strength;

  __device__ __forceinline__ explicit Epilogue(const EpilogueParams& e)
      : e(e), strength(e.noise ? __ldca(e.strength) : 0.0f) {}
  __device__ __forceinline__ float noise(int pixel) const {
    return e.noise ? strength * __ldca(e.noise + unsigned(pixel) % unsigned(e.noise_count)) : 0.0f;
  }
  __device__ __forceinline__ float act(float v) const { return v * (v > 0.0f ? e.up : e.down); }
  __device__ __forceinline__ float value(float v, float noise, int channel) const {
    return act(v + (noise + (e.bias ? __ldca(e.bias + channel) : 0.0f)));
  }
  // Channels [channel, channel + N) of a pixel; for N > 1 the bias must be aligned to 16 bytes there.
  template <int N>
  __device__ __forceinline__ void apply(Lanes<N>& v, int pixel, int channel) const {
    const float shift = noise(pixel);
    Lanes<N> bias{};
    if (e.bias) bias = load_lanes<N, ThroughL1>(e.bias, channel);
#pragma unroll
    for (int lane = 0; lane < N; lane++) v.v[lane] = act(v.v[lane] + (shift + bias.v[lane]));
  }
};
