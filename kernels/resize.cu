// Resizing along one axis: the host resizes images along x, then along y.
//   y[o,j,i] = sum_{k < taps[j].count} weights[taps[j].first + k] x[o, taps[j].start + k, i]
// x [outer, in, inner], y [outer, out, inner]: outer = N H, inner = C along x; outer = N, inner = W C along y.
//
// Threads: four neighbours of i each where inner and the addresses allow, else one element; grid-stride.
// Cost per output: 4 bytes written, 4 count bytes read, which neighbours share through the caches, 2 count FLOP (8 for
// a cubic that enlarges). Bound by memory.
// Numerics: f32, k ascending, a rounding after each product: the CPU's results to the bit.
// Launched by src/ops/resize/cuda.rs.
#include "common.cuh"

struct ResizeTaps {
  int32_t start;  // the first input position
  int32_t first;  // of its weights
  int32_t count;
};
static_assert(sizeof(ResizeTaps) == 12, "keep in step with src/ops/resize/cuda.rs");

struct ResizeParams {
  int32_t count;  // elements of y
  int32_t in, out, inner;
};
static_assert(sizeof(ResizeParams) == 16, "keep in step with src/ops/resize/cuda.rs");

struct ResizePass {
  const float* x;
  const ResizeTaps* taps;
  const float* weights;
  float* y;
  const ResizeParams& p;

  template <int N>
  __device__ __forceinline__ void visit(int64_t at) const {
    const unsigned line = unsigned(at) / unsigned(p.inner), i = unsigned(at) % unsigned(p.inner);
    const unsigned outer = line / unsigned(p.out), j = line % unsigned(p.out);
    const int start = __ldca(&taps[j].start), first = __ldca(&taps[j].first), count = __ldca(&taps[j].count);
    Lanes<N> sum{};
    for (int k = 0; k < count; k++) {
      const auto value = load_lanes<N>(x, (int64_t(outer) * p.in + start + k) * p.inner + i);
      const float weight = __ldca(weights + first + k);
#pragma unroll
      for (int lane = 0; lane < N; lane++) sum.v[lane] = __fadd_rn(sum.v[lane], __fmul_rn(value.v[lane], weight));
    }
    store_lanes<N>(y, at, sum);
  }
};

extern "C" __global__ void resize_axis_f32(const float* x, const ResizeTaps* taps, const float* weights, float* y,
                                           ResizeParams p) {
  dependent_launch();
  visit_elements(p.count, p.inner % 4 == 0 && all_aligned16(x, y), ResizePass{x, taps, weights, y, p});
}
