// Sums over the middle of [outer, mid, inner], kSums of them for every column j = (o, i) in one pass:
//   y[o,q,k,i] = sum over the m of part q of term k of (o, m, i)
// A long sum is cut into parts (blockIdx.y), which another launch adds.
//
// Threads: a block of 256 works on 256 / rows columns with `rows` threads each, which stride over m and are then added
// by halving. Neighbouring threads are neighbours in memory: along m where inner = 1, along columns elsewhere. A thread
// may take N neighbours in place of an element: N columns, or where inner = 1 N of m, which it adds itself; inner or
// mid, columns and part are counted in N then.
// Numerics: f32, in an order that depends on the shape and N alone: within a thread m ascending in steps of `rows`,
// then the tree. The rounding error is that of a sum of mid / (rows parts) terms.
#pragma once
#include "common.cuh"

constexpr int kSumThreads = 256;

struct SumParams {
  int32_t columns;  // outer * inner
  int32_t mid, inner;
  int32_t rows;    // threads per column, a power of two up to kSumThreads
  int32_t part;    // entries of m per part
  int32_t folded;  // of N > 1: whether they lie along m
};
static_assert(sizeof(SumParams) == 24, "keep in step with src/ops/reduce/cuda.rs");

// Adds, by halving, what the threads of a column have: that of row r of column `lane` is at r * lanes + lane. The sums
// are in row 0 then.
template <int kSums, int N>
__device__ __forceinline__ void add_rows(float (&sums)[kSums][N][kSumThreads], int row, int lane, int rows) {
  const int lanes = kSumThreads / rows, place = row * lanes + lane;
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) {
#pragma unroll
      for (int k = 0; k < kSums; k++)
#pragma unroll
        for (int i = 0; i < N; i++) sums[k][i][place] += sums[k][i][place + half * lanes];
    }
  }
}

// `term.add<N>(sums, at, pixel)` adds the terms of the elements [at, at + N), of (o, m) = pixel, to a thread's sums.
template <int N, int kSums, typename Term>
__device__ __forceinline__ void column_sums(const Term& term, float* y, const SumParams& p) {
  dependent_launch();
  const int thread = int(threadIdx.x), lanes = kSumThreads / p.rows;
  const bool along_m = N == 1 ? p.inner == 1 : p.folded != 0;
  const int lane = along_m ? thread / p.rows : thread % lanes;
  const int row = along_m ? thread % p.rows : thread / lanes;
  const int column = int(blockIdx.x) * lanes + lane;
  const int outer = column / p.inner, inner = column % p.inner;
  Lanes<N> sum[kSums]{};
  if (column < p.columns) {
    const int begin = int(blockIdx.y) * p.part, end = min(begin + p.part, p.mid);
    for (int m = begin + row; m < end; m += p.rows) {
      const int64_t pixel = int64_t(outer) * p.mid + m;
      term.template add<N>(sum, (pixel * p.inner + inner) * N, pixel);
    }
  }
  if (N > 1 && along_m) {
#pragma unroll
    for (int k = 0; k < kSums; k++)
#pragma unroll
      for (int i = 1; i < N; i++) sum[k].v[0] += sum[k].v[i];
  }
  SHARED(float, sums, [kSums][N][kSumThreads]);
#pragma unroll
  for (int k = 0; k < kSums; k++)
#pragma unroll
    for (int i = 0; i < N; i++) sums[k][i][row * lanes + lane] = sum[k].v[i];
  add_rows(sums, row, lane, p.rows);
  if (row > 0 || column >= p.columns) return;
  const int64_t part = int64_t(outer) * gridDim.y + blockIdx.y;
#pragma unroll
  for (int k = 0; k < kSums; k++) {
    const int64_t at = (part * kSums + k) * p.inner + inner;
    if (N > 1 && along_m) {
      y[at] = sums[k][0][lane];
    } else {
#pragma unroll
      for (int i = 0; i < N; i++) y[at * N + i] = sums[k][i][lane];
    }
  }
}
