// One block's tile of a matrix product whose operands are functions: what matmul.cu and conv2d.cu share.
//   accumulators[m][n] = sum_{k in [k_begin, k_end)} A(row m, k) B(row n, k)
//
// An operand is a struct with
//   Element, data            float or bf16, and where its elements lie
//   kAlongK                  whether neighbours in memory are neighbours in k, or neighbours in rows
//   Row row(int)             what depends on the row alone; rows beyond the end give elements of zero
//   Step step(int k)         what depends on k alone
//   int at(Row, Step)        which of `data` the element is, or a negative number where it is zero
//   int scale_at(Row, Step)  which of `scale` multiplies it; `scale` may be null
// so that divisions are made once per row and once per step, not once per element.
// An output is a struct with
//   Row row(int)                              what depends on the row alone, with `at`, where in `data` the row starts
//   float value(Row, int column, float sum)   what is stored of a sum, in `data`, of float or bf16
//
// Threads: 256, each with a micro-tile of kThreadM x kThreadN outputs in registers. Both operands pass through shared
// memory, kDepth of k at a time, k-major; the next slices are on their way to registers while the present ones are
// multiplied.
// Cost: per step 4 kDepth (kM + kN) bytes and 2 kDepth kM kN FLOP.
// Numerics: f32 fused multiply-adds, k ascending.
#pragma once
#include "common.cuh"

constexpr int kTileThreads = 256;
constexpr int kDepth = 16;

template <typename Operand>
__device__ __forceinline__ float element(const Operand& operand, const typename Operand::Row& row,
                                         const typename Operand::Step& step) {
  const int at = operand.at(row, step);
  if (at < 0) return 0.0f;
  const float value = widened(__ldca(operand.data + at));
  return operand.scale ? value * __ldca(operand.scale + operand.scale_at(row, step)) : value;
}

// A slice of one operand on its way from memory to shared memory: kRows rows, kDepth of k.
template <int kRows, typename Operand>
struct Slice {
  // Along k: the thread keeps one k of the slice and kRows / 16 rows. Along rows: one row, several k.
  static constexpr bool kAlongK = Operand::kAlongK;
  static constexpr int kApart = kAlongK ? kTileThreads / kDepth : kTileThreads / kRows;
  static constexpr int kEach = kRows * kDepth / kTileThreads;
  static constexpr int kKeptRows = kAlongK ? kEach : 1;
  static_assert(kTileThreads % kDepth == 0 && kTileThreads % kRows == 0, "whole rows of threads");

  const Operand& operand;
  typename Operand::Row rows[kKeptRows];
  float values[kEach];

  __device__ __forceinline__ int row_of(int j) const {
    return kAlongK ? int(threadIdx.x) / kDepth + j * kApart : int(threadIdx.x) % kRows;
  }
  __device__ __forceinline__ int k_of(int j) const {
    return kAlongK ? int(threadIdx.x) % kDepth : int(threadIdx.x) / kRows + j * kApart;
  }

  __device__ __forceinline__ Slice(const Operand& operand, int first_row) : operand(operand) {
#pragma unroll
    for (int j = 0; j < kKeptRows; j++) rows[j] = operand.row(first_row + row_of(j));
  }

  __device__ __forceinline__ void fetch(int k, int k_end) {
    if constexpr (kAlongK) {
      const bool inside = k + k_of(0) < k_end;
      const auto step = operand.step(inside ? k + k_of(0) : k);
#pragma unroll
      for (int j = 0; j < kEach; j++) values[j] = inside ? element(operand, rows[j], step) : 0.0f;
    } else {
#pragma unroll
      for (int j = 0; j < kEach; j++) {
        const int at = k + k_of(j);
        values[j] = at < k_end ? element(operand, rows[0], operand.step(at)) : 0.0f;
      }
    }
  }

  template <int kPitch>
  __device__ __forceinline__ void put(float (&tile)[kDepth][kPitch]) const {
#pragma unroll
    for (int j = 0; j < kEach; j++) tile[k_of(j)][row_of(j)] = values[j];
  }
};

// The shape of a block's tile and of a thread's part of it.
template <int kM_, int kN_, int kThreadM_, int kThreadN_>
struct Tile {
  static constexpr int kM = kM_, kN = kN_, kThreadM = kThreadM_, kThreadN = kThreadN_;
  static_assert(kM / kThreadM * (kN / kThreadN) == kTileThreads, "every thread has its part");
  float sums[kThreadM][kThreadN];

  // The thread's first row and column in the tile.
  __device__ __forceinline__ static int first_m() { return int(threadIdx.x) / (kN / kThreadN) * kThreadM; }
  __device__ __forceinline__ static int first_n() { return int(threadIdx.x) % (kN / kThreadN) * kThreadN; }

  template <typename A, typename B>
  __device__ __forceinline__ void multiply(const A& a, const B& b, int row, int column, int k_begin, int k_end) {
    // Four floats of padding keep 16-byte reads aligned and spread the writes along k over the banks.
    SHARED(float, tile_a, [kDepth][kM + 4]);
    SHARED(float, tile_b, [kDepth][kN + 4]);
    clear(sums);
    Slice<kM, A> slice_a(a, row);
    Slice<kN, B> slice_b(b, column);
    // Without this, operands would be asked for a step of a sum that has none.
    if (k_begin < k_end) {
      slice_a.fetch(k_begin, k_end);
      slice_b.fetch(k_begin, k_end);
    }
    for (int k = k_begin; k < k_end; k += kDepth) {
      slice_a.put(tile_a);
      slice_b.put(tile_b);
      __syncthreads();
      if (k + kDepth < k_end) {
        slice_a.fetch(k + kDepth, k_end);
        slice_b.fetch(k + kDepth, k_end);
      }
#pragma unroll
      for (int depth = 0; depth < kDepth; depth++) {
        float u[kThreadM], v[kThreadN];
#pragma unroll
        for (int m = 0; m < kThreadM; m++) u[m] = tile_a[depth][first_m() + m];
#pragma unroll
        for (int n = 0; n < kThreadN; n++) v[n] = tile_b[depth][first_n() + n];
#pragma unroll
        for (int m = 0; m < kThreadM; m++)
#pragma unroll
          for (int n = 0; n < kThreadN; n++) sums[m][n] = fmaf(u[m], v[n], sums[m][n]);
      }
      __syncthreads();
    }
  }

  // Calls visit(row, column, sum) for the thread's outputs inside [rows, columns].
  template <typename Visit>
  __device__ __forceinline__ void for_each(int row, int column, int rows, int columns, Visit visit) {
#pragma unroll
    for (int m = 0; m < kThreadM; m++)
#pragma unroll
      for (int n = 0; n < kThreadN; n++) {
        const int r = row + first_m() + m, c = column + first_n() + n;
        if (r < rows && c < columns) visit(r, c, sums[m][n]);
      }
  }

  // Stores the thread's outputs inside [rows, columns].
  template <typename Output>
  __device__ __forceinline__ void store(const Output& output, int row, int column, int rows, int columns) const {
#pragma unroll
    for (int m = 0; m < kThreadM; m++) {
      if (row + first_m() + m >= rows) continue;
      const auto out = output.row(row + first_m() + m);
#pragma unroll
      for (int n = 0; n < kThreadN; n++) {
        const int c = column + first_n() + n;
        if (c < columns) store_one(output.data + out.at + c, output.value(out, c, sums[m][n]));
      }
    }
  }
};

using WideTile = Tile<64, 64, 4, 4>;
using NarrowTile = Tile<128, 16, 4, 2>;  // for few columns: images, the channels of a toy
