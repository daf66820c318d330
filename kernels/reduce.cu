// Sums over one run of dimensions.
//   sum_middle   y[o,i] = sum_m x[o,m,i]
//   channel_dot  y[n,c] = sum_p u[n,p,c] v[n,p,c]          the same with o = n, m = p, i = c
// Columns j = (o, i) are independent sums. A long sum is cut into parts (blockIdx.y): part q is
// y[o,q,i] = sum over its share of m, and a second launch adds the parts.
//
// Threads: a block of 256 works on 256 / rows columns with `rows` threads each, which stride over m and are then added
// by halving. Neighbouring threads are neighbours in memory: along m where inner = 1, along columns elsewhere.
// Cost per element: 4 bytes (channel_dot 8), 1 FLOP (2). Bound by memory.
// Numerics: f32, in an order that depends on the shape alone: within a thread m ascending in steps of `rows`, then
// the tree, then the parts. The rounding error is that of a sum of mid / (rows parts) terms.
// Launched by src/ops/reduce/cuda.rs; src/ops/matmul and src/ops/conv2d add their parts with sum_middle.
#include "common.cuh"

constexpr int kThreads = 256;

struct SumParams {
  int32_t columns;  // outer * inner
  int32_t mid, inner;
  int32_t rows;  // threads per column, a power of two up to kThreads
  int32_t part;  // entries of m per part
};
static_assert(sizeof(SumParams) == 20, "keep in step with src/ops/reduce/cuda.rs");

struct Plain {
  const float* x;
  __device__ __forceinline__ float operator()(int64_t at) const { return __ldca(x + at); }
};
struct Product {
  const float* u;
  const float* v;
  __device__ __forceinline__ float operator()(int64_t at) const { return __ldca(u + at) * __ldca(v + at); }
};

template <typename Term>
__device__ __forceinline__ void sum_middle(Term term, float* y, const SumParams& p) {
  dependent_launch();
  const int thread = int(threadIdx.x), lanes = kThreads / p.rows;
  const int lane = p.inner == 1 ? thread / p.rows : thread % lanes;
  const int row = p.inner == 1 ? thread % p.rows : thread / lanes;
  const int column = int(blockIdx.x) * lanes + lane;
  const int outer = column / p.inner, inner = column % p.inner;
  float sum = 0.0f;
  if (column < p.columns) {
    const int begin = int(blockIdx.y) * p.part, end = min(begin + p.part, p.mid);
    for (int m = begin + row; m < end; m += p.rows) sum += term((int64_t(outer) * p.mid + m) * p.inner + inner);
  }
  SHARED(float, sums, [kThreads]);
  sums[row * lanes + lane] = sum;
  for (int half = p.rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) sums[row * lanes + lane] += sums[(row + half) * lanes + lane];
  }
  if (row == 0 && column < p.columns)
    y[(int64_t(outer) * gridDim.y + blockIdx.y) * p.inner + inner] = sums[lane];
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_middle_f32(const float* x, float* y, SumParams p) {
  sum_middle(Plain{x}, y, p);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    channel_dot_f32(const float* u, const float* v, float* y, SumParams p) {
  sum_middle(Product{u, v}, y, p);
}
