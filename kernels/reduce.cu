// Sums over one run of dimensions (column_sums.cuh).
//   sum_middle   y[o,i] = sum_m x[o,m,i]
//   channel_dot  y[n,c] = sum_p u[n,p,c] v[n,p,c]          the same with o = n, m = p, i = c
// x, u and v are f32 or bf16, y is f32; a second launch of sum_middle adds the parts of long sums.
//
// Threads: column_sums.cuh; those of the _bf16x8 entries take 16 bytes in place of an element.
// Cost per element: 4 bytes (channel_dot 8), half of that in bf16, 1 FLOP (2). Bound by memory.
// Numerics: column_sums.cuh; products of bf16 are exact.
// Launched by src/ops/reduce/cuda.rs; src/ops/matmul and src/ops/conv2d add their parts with sum_middle.
#include "column_sums.cuh"

template <typename T>
struct Plain {
  const T* x;
  template <int N>
  __device__ __forceinline__ void add(Lanes<N> (&sum)[1], int64_t at, int64_t) const {
    const auto terms = load_lanes<N, ThroughL1>(x, at);
#pragma unroll
    for (int i = 0; i < N; i++) sum[0].v[i] += terms.v[i];
  }
};
template <typename T>
struct Product {
  const T* u;
  const T* v;
  template <int N>
  __device__ __forceinline__ void add(Lanes<N> (&sum)[1], int64_t at, int64_t) const {
    const auto one = load_lanes<N, ThroughL1>(u, at), other = load_lanes<N, ThroughL1>(v, at);
#pragma unroll
    for (int i = 0; i < N; i++) sum[0].v[i] += one.v[i] * other.v[i];
  }
};

template <int N, typename Term>
__device__ __forceinline__ void sum_middle(const Term& term, float* y, const SumParams& p) {
  column_sums<N, 1>(term, y, p);
}

extern "C" __global__ void __launch_bounds__(kSumThreads) sum_middle_f32(const float* x, float* y, SumParams p) {
  sum_middle<1>(Plain<float>{x}, y, p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads) sum_middle_bf16(const bf16* x, float* y, SumParams p) {
  sum_middle<1>(Plain<bf16>{x}, y, p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads) sum_middle_bf16x8(const bf16* x, float* y, SumParams p) {
  sum_middle<8>(Plain<bf16>{x}, y, p);
}

extern "C" __global__ void __launch_bounds__(kSumThreads)
    channel_dot_f32(const float* u, const float* v, float* y, SumParams p) {
  sum_middle<1>(Product<float>{u, v}, y, p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads)
    channel_dot_bf16(const bf16* u, const bf16* v, float* y, SumParams p) {
  sum_middle<1>(Product<bf16>{u, v}, y, p);
}
extern "C" __global__ void __launch_bounds__(kSumThreads)
    channel_dot_bf16x8(const bf16* u, const bf16* v, float* y, SumParams p) {
  sum_middle<8>(Product<bf16>{u, v}, y, p);
}
