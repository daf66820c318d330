// The scaled convolution family's parameters, its index relation, and what becomes of its sums: what conv2d.cu and
// conv2d_sm90.cu share. The formulas are in conv2d.cu. An output is a struct as gemm_tile.cuh describes; T is what it
// is stored as.
#pragma once
#include "epilogue.cuh"

struct Conv2dParams {
  int32_t n;
  int32_t x_h, x_w, x_c;
  int32_t g_h, g_w, g_c;
  int32_t k_h, k_w;
  int32_t stride_y, stride_x, pad_y, pad_x;
  int32_t part;  // of k; 0: all of it
  float gain;    // of the form
};
static_assert(sizeof(Conv2dParams) == 60, "keep in step with src/ops/conv2d/cuda.rs");

// The index relation, once per direction and axis.
__device__ __forceinline__ int input_at(int output, int tap, int stride, int padding) {
  return output * stride + tap - padding;
}
// Of the taps that reach inputs of one residue class: the first, and how many there are.
struct Taps {
  int first, count;
};
__device__ __forceinline__ Taps taps_reaching(int residue, int kernel, int stride, int padding) {
  const int first = (residue + padding) % stride;
  return {first, first < kernel ? (kernel - first + stride - 1) / stride : 0};
}

__device__ __forceinline__ float scaled(float value, const float* scale, int at) {
  return scale ? value * __ldca(scale + at) : value;
}

// Of one part of k: the gain and b times the sum.
template <typename T>
struct ConvolutionOutput {
  struct Row {
    int64_t at;
    int n;
  };
  T* data;
  const float* b;
  int pixels, channels;
  float gain;

  __device__ __forceinline__ Row row(int r) const { return {int64_t(r) * channels, r / pixels}; }
  __device__ __forceinline__ float value(const Row& r, int o, float sum) const {
    return scaled(gain * sum, b, r.n * channels + o);
  }
};

template <typename T>
struct ActivatedOutput {
  struct Row {
    int64_t at;
    int n;
    float noise;
  };
  T* data;
  const float* b;
  int pixels, channels;
  float gain;
  Epilogue act;

  __device__ __forceinline__ Row row(int r) const { return {int64_t(r) * channels, r / pixels, act.noise(r)}; }
  __device__ __forceinline__ float value(const Row& r, int o, float sum) const {
    return act.value(scaled(gain * sum, b, r.n * channels + o), r.noise, o);
  }
};

// The pixels q of one residue class, and the taps that reach them.
struct ResidueClass {
  int y, x;  // residues
  int h, w;  // pixels of the class
  Taps taps_y, taps_x;

  __device__ __forceinline__ ResidueClass(int index, const Conv2dParams& p)
      : y(index / p.stride_x),
        x(index % p.stride_x),
        h(y < p.x_h ? (p.x_h - y + p.stride_y - 1) / p.stride_y : 0),
        w(x < p.x_w ? (p.x_w - x + p.stride_x - 1) / p.stride_x : 0),
        taps_y(taps_reaching(y, p.k_h, p.stride_y, p.pad_y)),
        taps_x(taps_reaching(x, p.k_w, p.stride_x, p.pad_x)) {}
};

// The class's pixels of one part of k: the gain and a times the sum.
template <typename T>
struct TransposeOutput {
  struct Row {
    int64_t at;
    int n;
  };
  T* data;
  const float* a;
  const Conv2dParams& p;
  const ResidueClass& c;

  __device__ __forceinline__ Row row(int r) const {
    const int pixels = c.h * c.w, n = r / pixels, pixel = r % pixels;
    const int y = c.y + pixel / c.w * p.stride_y, x = c.x + pixel % c.w * p.stride_x;
    return {((int64_t(n) * p.x_h + y) * p.x_w + x) * p.x_c, n};
  }
  __device__ __forceinline__ float value(const Row& r, int i, float sum) const {
    return scaled(p.gain * sum, a, r.n * p.x_c + i);
  }
};

// One part of k: the gain times the sum.
struct WeightOutput {
  struct Row {
    int64_t at;
  };
  float* data;
  int columns;
  float gain;

  __device__ __forceinline__ Row row(int o) const { return {int64_t(o) * columns}; }
  __device__ __forceinline__ float value(const Row&, int, float sum) const { return gain * sum; }
};
