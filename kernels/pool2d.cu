// Pooling over windows of x [N,H,W,C]; the window of output p takes pixels p stride + t - padding for taps t.
//   max_pool2d            y[n,p,c] = max_t x[n,q(p,t),c]                   a NaN wins
//   max_pool2d_taps       k[n,p,c] = the first t of the largest, as k_y kernel_x + k_x in f32
//   gather_taps           y[n,p,c] = x[n,q(p,k[n,p,c]),c]
//   scatter_taps          z[n,q,c] = sum over p with q(p,k[n,p,c]) = q of g[n,p,c]
//   avg_pool2d            y[n,p,c] = share(p) sum_t x[n,q(p,t),c]
//   avg_pool2d_transpose  z[n,q,c] = sum over p whose window holds q of share(p) g[n,p,c]
// Taps outside the image do not take part. share = 1 / (taps inside the image, or all taps).
//
// Threads: four channels of a pixel of the result each where C and the addresses allow, else one element; grid-stride.
// The sums into z gather what the CPU scatters: a pixel asks which windows hold it.
// Cost per element of the result: 8 bytes and 1 FLOP for each element of a window (of each window that holds the
// pixel), which neighbours share through the caches. Bound by memory.
// Numerics: f32; taps, or windows, in ascending order with a rounding after each product, which is the CPU's order:
// results are the CPU's to the bit.
// Launched by src/ops/pool2d/cuda.rs.
#include "common.cuh"

struct Pool2dParams {
  int32_t count;  // elements of the result
  int32_t in_h, in_w, out_h, out_w;
  int32_t channels;
  int32_t k_h, k_w;
  int32_t stride_y, stride_x, pad_y, pad_x;
  int32_t divide_by_inside;  // averages: whether taps in the padding are not counted
};
static_assert(sizeof(Pool2dParams) == 52, "keep in step with src/ops/pool2d/cuda.rs");

// Indices [begin, end).
struct Range {
  int begin, end;
  __device__ __forceinline__ int length() const { return end - begin; }
};
// The pixels of window `p` inside an axis of `length`.
__device__ __forceinline__ Range window(int p, int kernel, int stride, int padding, int length) {
  const int start = p * stride - padding;
  return {max(start, 0), min(start + kernel, length)};
}
// The windows out of `count` that hold pixel `q`.
__device__ __forceinline__ Range windows_of(int q, int kernel, int stride, int padding, int count) {
  const int last = q + padding, beyond = last - kernel;  // the last tap of an earlier window
  return {beyond < 0 ? 0 : beyond / stride + 1, min(last / stride + 1, count)};
}

// Where element i of a tensor [N,h,w,C] is.
struct Place {
  int n, y, x, c;
  __device__ __forceinline__ Place(int64_t i, int h, int w, int channels) {
    unsigned rest = unsigned(i);
    c = int(rest % unsigned(channels));
    rest /= unsigned(channels);
    x = int(rest % unsigned(w));
    rest /= unsigned(w);
    y = int(rest % unsigned(h));
    n = int(rest / unsigned(h));
  }
};

__device__ __forceinline__ float share(int y, int x, const Pool2dParams& p) {
  if (!p.divide_by_inside) return __fdiv_rn(1.0f, float(p.k_h * p.k_w));
  const int rows = window(y, p.k_h, p.stride_y, p.pad_y, p.in_h).length();
  return __fdiv_rn(1.0f, float(rows * window(x, p.k_w, p.stride_x, p.pad_x, p.in_w).length()));
}

// Calls visit(tap, elements of x) for the taps of the window at `at` that lie in the image.
template <int N, typename Visit>
__device__ __forceinline__ void for_window(const float* x, const Place& at, const Pool2dParams& p, Visit visit) {
  const Range rows = window(at.y, p.k_h, p.stride_y, p.pad_y, p.in_h);
  const Range columns = window(at.x, p.k_w, p.stride_x, p.pad_x, p.in_w);
  for (int y = rows.begin; y < rows.end; y++)
    for (int q = columns.begin; q < columns.end; q++) {
      const int tap = (y + p.pad_y - at.y * p.stride_y) * p.k_w + q + p.pad_x - at.x * p.stride_x;
      visit(tap, load_lanes<N>(x, ((int64_t(at.n) * p.in_h + y) * p.in_w + q) * p.channels + at.c));
    }
}

// Calls visit(element of g, tap, y, x) for the windows that hold the pixel at `at`.
template <typename Visit>
__device__ __forceinline__ void for_windows_of(const Place& at, const Pool2dParams& p, Visit visit) {
  const Range rows = windows_of(at.y, p.k_h, p.stride_y, p.pad_y, p.out_h);
  const Range columns = windows_of(at.x, p.k_w, p.stride_x, p.pad_x, p.out_w);
  for (int y = rows.begin; y < rows.end; y++)
    for (int x = columns.begin; x < columns.end; x++) {
      const int tap = (at.y + p.pad_y - y * p.stride_y) * p.k_w + at.x + p.pad_x - x * p.stride_x;
      visit(((int64_t(at.n) * p.out_h + y) * p.out_w + x) * p.channels + at.c, tap, y, x);
    }
}

// Whether the largest so far stays: unless the next one is larger, or a NaN after a number.
__device__ __forceinline__ bool stays(float largest, float next) { return next <= largest || largest != largest; }

template <bool kTaps>
struct MaxPass {
  const float* x;
  float* y;
  const Pool2dParams& p;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    const Place at(i, p.out_h, p.out_w, p.channels);
    Lanes<N> largest{}, taps{};
    bool first = true;
    for_window<N>(x, at, p, [&](int tap, const Lanes<N>& next) {
#pragma unroll
      for (int lane = 0; lane < N; lane++) {
        if (!first && stays(largest.v[lane], next.v[lane])) continue;
        largest.v[lane] = next.v[lane];
        taps.v[lane] = float(tap);
      }
      first = false;
    });
    store_lanes<N>(y, i, kTaps ? taps : largest);
  }
};

struct GatherPass {
  const float* x;
  const float* taps;
  float* y;
  const Pool2dParams& p;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    const Place at(i, p.out_h, p.out_w, p.channels);
    const auto chosen = load_lanes<N>(taps, i);
    Lanes<N> result;
#pragma unroll
    for (int lane = 0; lane < N; lane++) {
      const int tap = int(chosen.v[lane]);
      const int y = at.y * p.stride_y - p.pad_y + tap / p.k_w, q = at.x * p.stride_x - p.pad_x + tap % p.k_w;
      result.v[lane] = __ldca(x + ((int64_t(at.n) * p.in_h + y) * p.in_w + q) * p.channels + at.c + lane);
    }
    store_lanes<N>(y, i, result);
  }
};

struct ScatterPass {
  const float* g;
  const float* taps;
  float* z;
  const Pool2dParams& p;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    Lanes<N> sum{};
    for_windows_of(Place(i, p.in_h, p.in_w, p.channels), p, [&](int64_t from, int tap, int, int) {
      const auto chosen = load_lanes<N>(taps, from), value = load_lanes<N>(g, from);
#pragma unroll
      for (int lane = 0; lane < N; lane++)
        if (chosen.v[lane] == float(tap)) sum.v[lane] += value.v[lane];
    });
    store_lanes<N>(z, i, sum);
  }
};

struct AveragePass {
  const float* x;
  float* y;
  const Pool2dParams& p;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    const Place at(i, p.out_h, p.out_w, p.channels);
    Lanes<N> sum{};
    for_window<N>(x, at, p, [&](int, const Lanes<N>& next) {
#pragma unroll
      for (int lane = 0; lane < N; lane++) sum.v[lane] += next.v[lane];
    });
    const float factor = share(at.y, at.x, p);
#pragma unroll
    for (int lane = 0; lane < N; lane++) sum.v[lane] *= factor;
    store_lanes<N>(y, i, sum);
  }
};

struct AverageTransposePass {
  const float* g;
  float* z;
  const Pool2dParams& p;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    Lanes<N> sum{};
    for_windows_of(Place(i, p.in_h, p.in_w, p.channels), p, [&](int64_t from, int, int y, int x) {
      const auto value = load_lanes<N>(g, from);
      const float factor = share(y, x, p);
#pragma unroll
      for (int lane = 0; lane < N; lane++) sum.v[lane] = __fadd_rn(sum.v[lane], __fmul_rn(value.v[lane], factor));
    });
    store_lanes<N>(z, i, sum);
  }
};

template <typename... Pointers>
__device__ __forceinline__ bool in_vectors(const Pool2dParams& p, const Pointers*... pointers) {
  return p.channels % 4 == 0 && all_aligned16(pointers...);
}

extern "C" __global__ void max_pool2d_f32(const float* x, float* y, Pool2dParams p) {
  dependent_launch();
  visit_elements(p.count, in_vectors(p, x, y), MaxPass<false>{x, y, p});
}
extern "C" __global__ void max_pool2d_taps_f32(const float* x, float* taps, Pool2dParams p) {
  dependent_launch();
  visit_elements(p.count, in_vectors(p, x, taps), MaxPass<true>{x, taps, p});
}
extern "C" __global__ void gather_taps_f32(const float* x, const float* taps, float* y, Pool2dParams p) {
  dependent_launch();
  visit_elements(p.count, in_vectors(p, taps, y), GatherPass{x, taps, y, p});
}
extern "C" __global__ void scatter_taps_f32(const float* g, const float* taps, float* z, Pool2dParams p) {
  dependent_launch();
  visit_elements(p.count, in_vectors(p, g, taps, z), ScatterPass{g, taps, z, p});
}
extern "C" __global__ void avg_pool2d_f32(const float* x, float* y, Pool2dParams p) {
  dependent_launch();
  visit_elements(p.count, in_vectors(p, x, y), AveragePass{x, y, p});
}
extern "C" __global__ void avg_pool2d_transpose_f32(const float* g, float* z, Pool2dParams p) {
  dependent_launch();
  visit_elements(p.count, in_vectors(p, g, z), AverageTransposePass{g, z, p});
}
