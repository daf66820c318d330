// Functions of one, two values, the scale of each channel of each sample, and the step from one type to the other.
//   cast           y[i] = x[i], rounded to nearest where y is bf16
//   map            y[i] = f(x[i])                                  f: see MapKind
//   zip            y[i] = a[i] (+, -, *) b[i]
//   channel_scale  y[n,p,c] = x[n,p,c] s[n,c]                      x [N, P, C], s [N, C]
//
// _f32 entries have x, a, b and y in f32, _bf16 entries in bf16; s is f32 in both. cast_bf16 makes bf16 of f32,
// cast_f32 the reverse.
//
// Threads: 16 bytes of y each (cast: eight elements) where addresses (and C, for channel_scale) allow, else one
// element; grid-stride.
// Cost per element: map 8 bytes, zip 12, channel_scale 8 (s stays in L2), half of that in bf16, cast 6; a few FLOP,
// transcendental maps some tens. Bound by memory.
// Numerics: one rounding per operation as on the CPU; affine and saturate have one fused multiply-add. expf, logf,
// tanhf, powf and log1pf are within a few units in the last place. In bf16 the same in f32, rounded once when stored.
// Launched by src/ops/elementwise/cuda.rs.
#include "common.cuh"

enum MapKind : int32_t {
  kAffine = 0,      // a x + b
  kSquare = 1,      // a (x + b)^2
  kSqrt = 2,        // a (x + b)^0.5
  kRsqrt = 3,       // a (x + b)^-0.5
  kReciprocal = 4,  // a (x + b)^-1
  kPower = 5,       // a (x + b)^c
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
  float a, b, c;
};
static_assert(sizeof(MapParams) == 20, "keep in step with src/ops/elementwise/cuda.rs");

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

template <typename From, typename To>
struct CastPass {
  const From* x;
  To* y;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    store_lanes<N>(y, i, load_lanes<N>(x, i));
  }
};

template <typename From, typename To>
__device__ __forceinline__ void cast(const From* x, To* y, int count) {
  dependent_launch();
  visit_elements<kLanes<bf16>>(count, all_aligned16(x, y), CastPass<From, To>{x, y});
}

extern "C" __global__ void cast_f32(const bf16* x, float* y, int count) { cast(x, y, count); }
extern "C" __global__ void cast_bf16(const float* x, bf16* y, int count) { cast(x, y, count); }

template <typename T, typename F>
struct MapPass {
  const T* x;
  T* y;
  F f;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    auto v = load_lanes<N>(x, i);
#pragma unroll
    for (int lane = 0; lane < N; lane++) v.v[lane] = f(v.v[lane]);
    store_lanes<N>(y, i, v);
  }
};

template <typename T, typename F>
__device__ __forceinline__ void map_by(const T* x, T* y, int count, F f) {
  visit_elements<kLanes<T>>(count, all_aligned16(x, y), MapPass<T, F>{x, y, f});
}

template <typename T>
__device__ __forceinline__ void map(const T* x, T* y, const MapParams& p) {
  dependent_launch();
  const float a = p.a, b = p.b, c = p.c;
  switch (p.kind) {
    case kAffine: return map_by(x, y, p.count, [=](float v) { return fmaf(v, a, b); });
    case kSquare: return map_by(x, y, p.count, [=](float v) { return a * ((v + b) * (v + b)); });
    case kSqrt: return map_by(x, y, p.count, [=](float v) { return a * sqrtf(v + b); });
    case kRsqrt: return map_by(x, y, p.count, [=](float v) { return a / sqrtf(v + b); });
    case kReciprocal: return map_by(x, y, p.count, [=](float v) { return a / (v + b); });
    case kPower: return map_by(x, y, p.count, [=](float v) { return a * powf(v + b, c); });
    case kExp: return map_by(x, y, p.count, [](float v) { return expf(v); });
    case kLog: return map_by(x, y, p.count, [](float v) { return logf(v); });
    case kSigmoid: return map_by(x, y, p.count, [](float v) { return 1.0f / (1.0f + expf(-v)); });
    case kTanh: return map_by(x, y, p.count, [](float v) { return tanhf(v); });
    case kSoftplus:
      return map_by(x, y, p.count, [](float v) { return v > 0.0f ? v + log1pf(expf(-v)) : log1pf(expf(v)); });
    case kSaturate:
      return map_by(x, y, p.count, [=](float v) {
        v = fmaf(v, a, b);
        v = v < 0.0f ? 0.0f : v;
        return v > 1.0f ? 1.0f : v;
      });
  }
}

extern "C" __global__ void map_f32(const float* x, float* y, MapParams p) { map(x, y, p); }
extern "C" __global__ void map_bf16(const bf16* x, bf16* y, MapParams p) { map(x, y, p); }

template <typename T, typename F>
struct ZipPass {
  const T* a;
  const T* b;
  T* y;
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

template <typename T, typename F>
__device__ __forceinline__ void zip_by(const T* a, const T* b, T* y, int count, F f) {
  visit_elements<kLanes<T>>(count, all_aligned16(a, b, y), ZipPass<T, F>{a, b, y, f});
}

template <typename T>
__device__ __forceinline__ void zip(const T* a, const T* b, T* y, const ZipParams& p) {
  dependent_launch();
  switch (p.kind) {
    case kAdd: return zip_by(a, b, y, p.count, [](float u, float v) { return u + v; });
    case kSubtract: return zip_by(a, b, y, p.count, [](float u, float v) { return u - v; });
    case kMultiply: return zip_by(a, b, y, p.count, [](float u, float v) { return u * v; });
  }
}

extern "C" __global__ void zip_f32(const float* a, const float* b, float* y, ZipParams p) { zip(a, b, y, p); }
extern "C" __global__ void zip_bf16(const bf16* a, const bf16* b, bf16* y, ZipParams p) { zip(a, b, y, p); }

template <typename T>
struct ChannelScalePass {
  const T* x;
  const float* scale;
  T* y;
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

template <typename T>
__device__ __forceinline__ void channel_scale(const T* x, const float* scale, T* y, const ChannelScaleParams& p) {
  dependent_launch();
  const bool wide = p.channels % kLanes<T> == 0 && all_aligned16(x, scale, y);
  visit_elements<kLanes<T>>(p.count, wide, ChannelScalePass<T>{x, scale, y, unsigned(p.sample), unsigned(p.channels)});
}

extern "C" __global__ void channel_scale_f32(const float* x, const float* scale, float* y, ChannelScaleParams p) {
  channel_scale(x, scale, y, p);
}
extern "C" __global__ void channel_scale_bf16(const bf16* x, const float* scale, bf16* y, ChannelScaleParams p) {
  channel_scale(x, scale, y, p);
}
