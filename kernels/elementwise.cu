// Functions of one, two values, and the scale of each channel of each sample.
//   map            y[i] = f(x[i])                                  f: see MapKind
//   zip            y[i] = a[i] (+, -, *) b[i]
//   channel_scale  y[n,p,c] = x[n,p,c] s[n,c]                      x [N, P, C], s [N, C]
//
// Threads: four elements each where addresses (and C, for channel_scale) allow, else one; grid-stride.
// Cost per element: map 8 bytes, zip 12, channel_scale 8 (s stays in L2); a few FLOP, transcendental maps some tens.
// Bound by memory.
// Numerics: one rounding per operation as on the CPU; affine and saturate have one fused multiply-add. expf, logf,
// tanhf, powf and log1pf are within a few units in the last place.
// Launched by src/ops/elementwise/cuda.rs.
#include "common.cuh"

enum MapKind : int32_t {
  kAffine = 0,  // a x + b
  kSquare = 1,
  kSqrt = 2,
  kRsqrt = 3,
  kReciprocal = 4,
  kPower = 5,  // x^a
  kExp = 6,
  kLog = 7,
  kSigmoid = 8,
  kTanh = 9,
  kSoftplus = 10,  // log(1 + e^x)
  kSaturate = 11   // a x + b cut to [0, 1]; NaN stays
};

struct MapParams {
  int32_t count;
  MapKind kind;
  float a, b;
};
static_assert(sizeof(MapParams) == 16, "keep in step with src/ops/elementwise/cuda.rs");

enum ZipKind : int32_t { kAdd = 0, kSubtract = 1, kMultiply = 2 };

struct ZipParams {
  int32_t count;
  ZipKind kind;
};
static_assert(sizeof(ZipParams) == 8, "keep in step with src/ops/elementwise/cuda.rs");

struct ChannelScaleParams {
  int32_t count;
  int32_t sample;  // elements of one sample, P C
  int32_t channels;
};
static_assert(sizeof(ChannelScaleParams) == 12, "keep in step with src/ops/elementwise/cuda.rs");

template <typename F>
struct MapPass {
  const float* x;
  float* y;
  F f;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto v = load_lanes<N>(x, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) v.v[lane] = f(v.v[lane]);
    store_lanes<N>(y, i, v);
  }
};

template <typename F>
__device__ __forceinline__ void map(const float* x, float* y, int count, F f) {
  visit_elements(count, all_aligned16(x, y), MapPass<F>{x, y, f});
}

extern "C" __global__ void map_f32(const float* x, float* y, MapParams p) {
  dependent_launch();
  const float a = p.a, b = p.b;
  switch (p.kind) {
    case kAffine: return map(x, y, p.count, [=](float v) { return fmaf(v, a, b); });
    case kSquare: return map(x, y, p.count, [](float v) { return v * v; });
    case kSqrt: return map(x, y, p.count, [](float v) { return sqrtf(v); });
    case kRsqrt: return map(x, y, p.count, [](float v) { return 1.0f / sqrtf(v); });
    case kReciprocal: return map(x, y, p.count, [](float v) { return 1.0f / v; });
    case kPower: return map(x, y, p.count, [=](float v) { return powf(v, a); });
    case kExp: return map(x, y, p.count, [](float v) { return expf(v); });
    case kLog: return map(x, y, p.count, [](float v) { return logf(v); });
    case kSigmoid: return map(x, y, p.count, [](float v) { return 1.0f / (1.0f + expf(-v)); });
    case kTanh: return map(x, y, p.count, [](float v) { return tanhf(v); });
    case kSoftplus:
      return map(x, y, p.count, [](float v) { return v > 0.0f ? v + log1pf(expf(-v)) : log1pf(expf(v)); });
    case kSaturate:
      return map(x, y, p.count, [=](float v) {
        v = fmaf(v, a, b);
        v = v < 0.0f ? 0.0f : v;
        return v > 1.0f ? 1.0f : v;
      });
  }
}

template <typename F>
struct ZipPass {
  const float* a;
  const float* b;
  float* y;
  F f;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto u = load_lanes<N>(a, i);
    const auto v = load_lanes<N>(b, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) u.v[lane] = f(u.v[lane], v.v[lane]);
    store_lanes<N>(y, i, u);
  }
};

template <typename F>
__device__ __forceinline__ void zip(const float* a, const float* b, float* y, int count, F f) {
  visit_elements(count, all_aligned16(a, b, y), ZipPass<F>{a, b, y, f});
}

extern "C" __global__ void zip_f32(const float* a, const float* b, float* y, ZipParams p) {
  dependent_launch();
  switch (p.kind) {
    case kAdd: return zip(a, b, y, p.count, [](float u, float v) { return u + v; });
    case kSubtract: return zip(a, b, y, p.count, [](float u, float v) { return u - v; });
    case kMultiply: return zip(a, b, y, p.count, [](float u, float v) { return u * v; });
  }
}

struct ChannelScalePass {
  const float* x;
  const float* scale;
  float* y;
  unsigned sample, channels;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto v = load_lanes<N>(x, i);
    const unsigned at = unsigned(i), n = at / sample;
    const auto s = load_lanes<N>(scale, n * channels + at % channels);
#pragma unroll
    for (int lane = 0; lane < N; lane++) v.v[lane] *= s.v[lane];
    store_lanes<N>(y, i, v);
  }
};

extern "C" __global__ void channel_scale_f32(const float* x, const float* scale, float* y, ChannelScaleParams p) {
  dependent_launch();
  const bool wide = p.channels % 4 == 0 && all_aligned16(x, scale, y);
  visit_elements(p.count, wide, ChannelScalePass{x, scale, y, unsigned(p.sample), unsigned(p.channels)});
}
