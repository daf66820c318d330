// Sums over one run of dimensions.
//   sum_middle   y[o,i] = sum_m x[o,m,i]
//   channel_dot  y[n,c] = sum_p u[n,p,c] v[n,p,c]          the same with o = n, m = p, i = c
// Columns j = (o, i) are independent sums. A long sum is cut into parts (blockIdx.y): part q is
// y[o,q,i] = sum over its share of m, and a second launch adds the parts. x, u and v are f32 or bf16, y is f32.
//
// Threads: a block of 256 works on 256 / rows columns with `rows` threads each, which stride over m and are then added
// by halving. Neighbouring threads are neighbours in memory: along m where inner = 1, along columns elsewhere. A thread
// of the _bf16x8 entries takes 16 bytes in place of an element: eight columns, or where inner = 1 eight m, which it
// adds itself; inner or mid, columns and part are counted in eights then.
// Cost per element: 4 bytes (channel_dot 8), half of that in bf16, 1 FLOP (2). Bound by memory.
// Numerics: f32, in an order that depends on the shape alone (and, in bf16, on whether addresses allow eights): within
// a thread m ascending in steps of `rows`, then the tree, then the parts. The rounding error is that of a sum of
// mid / (rows parts) terms. Products of bf16 are exact.
// Launched by src/ops/reduce/cuda.rs; src/ops/matmul and src/ops/conv2d add their parts with sum_middle.
#include "common.cuh"

constexpr int kThreads = 256;

struct SumParams {
  int32_t columns;  // outer * inner
  int32_t mid, inner;
  int32_t rows;  // threads per column, a power of two up to kThreads
  int32_t part;  // entries of m per part
  int32_t folded;  // of eights: whether they lie along m
};
static_assert(sizeof(SumParams) == 24, "keep in step with src/ops/reduce/cuda.rs");

template <typename T>
struct Plain {
  const T* x;
  template <int N>
  __device__ __forceinline__ Lanes<N> terms(int64_t at) const {
    return load_lanes<N, ThroughL1>(x, at);
  }
};
template <typename T>
struct Product {
  const T* u;
  const T* v;
  template <int N>
  __device__ __forceinline__ Lanes<N> terms(int64_t at) const {
    auto product = load_lanes<N, ThroughL1>(u, at);
    const auto other = load_lanes<N, ThroughL1>(v, at);
#pragma unroll
    for (int i = 0; i < N; i++) product.v[i] *= other.v[i];
    return product;
  }
};

template <int N, typename Term>
__device__ __forceinline__ void sum_middle(Term term, float* y, const SumParams& p) {
  dependent_launch();
  const int thread = int(threadIdx.x), lanes = kThreads / p.rows;
  const bool along_m = N == 1 ? p.inner == 1 : p.folded != 0;
  const int lane = along_m ? thread / p.rows : thread % lanes;
  const int row = along_m ? thread % p.rows : thread / lanes;
  const int column = int(blockIdx.x) * lanes + lane;
  const int outer = column / p.inner, inner = column % p.inner;
  Lanes<N> sum{};
  if (column < p.columns) {
    const int begin = int(blockIdx.y) * p.part, end = min(begin + p.part, p.mid);
    for (int m = begin + row; m < end; m += p.rows) {
      const auto terms = term.template terms<N>(((int64_t(outer) * p.mid + m) * p.inner + inner) * N);
#pragma unroll
      for (int i = 0; i < N; i++) sum.v[i] += terms.v[i];
    }
  }
  if (N > 1 && along_m) {
#pragma unroll
    for (int i = 1; i < N; i++) sum.v[0] += sum.v[i];
  }
  SHARED(float, sums, [N][kThreads]);
  const int place = row * lanes + lane;
#pragma unroll
  for (int i = 0; i < N; i++) sums[i][place] = sum.v[i];
  for (int half = p.rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) {
#pragma unroll
      for (int i = 0; i < N; i++) sums[i][place] += sums[i][place + half * lanes];
    }
  }
  if (row > 0 || column >= p.columns) return;
  const int64_t at = (int64_t(outer) * gridDim.y + blockIdx.y) * p.inner + inner;
  if (N > 1 && along_m) {
    y[at] = sums[0][lane];
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) y[at * N + i] = sums[i][lane];
}

extern "C" __global__ void __launch_bounds__(kThreads) sum_middle_f32(const float* x, float* y, SumParams p) {
  sum_middle<1>(Plain<float>{x}, y, p);
}
extern "C" __global__ void __launch_bounds__(kThreads) sum_middle_bf16(const bf16* x, float* y, SumParams p) {
  sum_middle<1>(Plain<bf16>{x}, y, p);
}
extern "C" __global__ void __launch_bounds__(kThreads) sum_middle_bf16x8(const bf16* x, float* y, SumParams p) {
  sum_middle<8>(Plain<bf16>{x}, y, p);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    channel_dot_f32(const float* u, const float* v, float* y, SumParams p) {
  sum_middle<1>(Product<float>{u, v}, y, p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
    channel_dot_bf16(const bf16* u, const bf16* v, float* y, SumParams p) {
  sum_middle<1>(Product<bf16>{u, v}, y, p);
}
extern "C" __global__ void __launch_bounds__(kThreads)
    channel_dot_bf16x8(const bf16* u, const bf16* v, float* y, SumParams p) {
  sum_middle<8>(Product<bf16>{u, v}, y, p);
}
