// One block's tile of a matrix product on tensor cores (mma.sync), for operands and outputs as gemm_tile.cuh has them.
//   sums[m][n] = sum_{k in [k_begin, k_end)} A(row m, k) B(row n, k)
//
// Both operands lie in shared memory as they are stored, f32 or bf16, kSliceDepth of k at a time (16 f32, 32 bf16), in
// a ring of kStages stages that cp.async fills: 16 bytes at a time where neighbours in memory are neighbours in k or in
// rows (the caller knows whether channels and addresses allow it), else one element (a single bf16 goes through a
// register), for which a row's share of the index is worked out again at every slice. An operand's scale is applied by
// the thread that asked for the bytes, where they have landed, before the barrier that shows them to the others.
//   along k      [rows][kSliceDepth and 16 bytes], read by ldmatrix, 16 bytes of a row as one row of its matrices
//   along rows   [kSliceDepth][rows + 8], f32 read one at a time, bf16 by ldmatrix, transposed
// Either padding spreads the eight rows (the four k, the eight k) that a warp reads together over all banks.
//
// Arithmetic:
//   Tf32     operands rounded to 11 bits, mma.m16n8k8
//   Tf32x3   each operand as the sum of two TF32 numbers, three products; that of the two small parts is left out
//   Bf16     mma.m16n8k16. f32 operands are rounded to 8 bits in registers; the order of k inside a group of 16 is
//            another one then, the same for both. bf16 operands go as they are, rounded once more where scaled.
//
// Threads: kM / kWarpM times kN / kWarpN warps, each with kWarpM x kWarpN outputs in registers.
// Shared memory: kSharedBytes, dynamic.
// Cost: per slice 64 (kM + kN) bytes and 2 kSliceDepth kM kN FLOP (Tf32x3: three times as many).
// Numerics: f32 sums in the tensor core, k ascending by groups of 8 (Bf16: 16). Against the exact sum of |a b| the
// error is at most 2^-10 (Tf32), 2^-7 (Bf16) or 2^-20.4 (Tf32x3) from rounding operands, plus that of an f32 sum. A
// tensor core truncates where it adds, so Tf32x3 sums each slice by itself and adds the slices in f32 to nearest.
#pragma once
#include "common.cuh"

enum class Math { Tf32, Tf32x3, Bf16 };

constexpr int kSliceBytes = 64;  // of one row
template <typename T>
constexpr int kSliceDepth = kSliceBytes / int(sizeof(T));
constexpr int kStages = 4;

// A slice of one operand in shared memory.
template <typename T, bool kAlongK, int kRows>
struct StagedSlice {
  static constexpr int kDepth = kSliceDepth<T>;
  static constexpr int kLines = kAlongK ? kRows : kDepth;
  static constexpr int kPitch = kAlongK ? kDepth + kLanes<T> : kRows + 8;
  T values[kLines][kPitch];

  __device__ __forceinline__ T* at(int row, int k) { return kAlongK ? &values[row][k] : &values[k][row]; }
  __device__ __forceinline__ const T* at(int row, int k) const { return kAlongK ? &values[row][k] : &values[k][row]; }
};

// The vectors of each slice that this thread brings.
template <int kRows, int kVector, int kThreads, typename Operand>
struct SliceCopy {
  using Element = typename Operand::Element;
  static constexpr bool kAlongK = Operand::kAlongK;
  static constexpr int kDepth = kSliceDepth<Element>;
  static constexpr int kLine = (kAlongK ? kDepth : kRows) / kVector;  // vectors side by side in memory
  static constexpr int kApart = kThreads / kLine;
  static constexpr int kEach = kRows * kDepth / kVector / kThreads;
  static constexpr bool kKeepsRows = kVector > 1;
  static constexpr int kKeptRows = !kKeepsRows ? 1 : kAlongK ? kEach : 1;
  static_assert(kThreads % kLine == 0 && kEach >= 1, "whole lines of vectors");
  using Staged = StagedSlice<Element, kAlongK, kRows>;

  const Operand& operand;
  int first_row;
  typename Operand::Row rows[kKeptRows];

  __device__ __forceinline__ static int along() { return int(threadIdx.x) % kLine * kVector; }
  __device__ __forceinline__ static int line(int j) { return int(threadIdx.x) / kLine + j * kApart; }
  __device__ __forceinline__ static int row_of(int j) { return kAlongK ? line(j) : along(); }
  __device__ __forceinline__ static int k_of(int j) { return kAlongK ? along() : line(j); }

  __device__ __forceinline__ SliceCopy(const Operand& operand, int first_row) : operand(operand), first_row(first_row) {
    if constexpr (kKeepsRows) {
#pragma unroll
      for (int j = 0; j < kKeptRows; j++) rows[j] = row(j);
    }
  }
  __device__ __forceinline__ typename Operand::Row row(int j) const { return operand.row(first_row + row_of(j)); }

  // Calls visit(j, row, step, element) for the thread's vectors of the slice at k; the element is negative where the
  // vector is zero.
  template <typename Visit>
  __device__ __forceinline__ void for_each(int k, int k_end, Visit visit) const {
    auto step = operand.step(k + k_of(0));
#pragma unroll(kKeepsRows ? kEach : 1)
    for (int j = 0; j < kEach; j++) {
      if (!kAlongK && j > 0) step = operand.step(k + k_of(j));
      const auto own = kKeepsRows ? rows[kKeepsRows && kAlongK ? j : 0] : row(j);
      visit(j, own, step, k + k_of(j) < k_end ? operand.at(own, step) : -1);
    }
  }

  __device__ __forceinline__ void fetch(Staged& to, int k, int k_end) const {
    for_each(k, k_end, [&](int j, const auto&, const auto&, int element) {
      const Element* from = operand.data + max(element, 0);
      Element* place = to.at(row_of(j), k_of(j));
      if constexpr (kVector > 1)
        ptx::cp_async16(place, from, element >= 0);
      else if constexpr (sizeof(Element) == 4)
        ptx::cp_async4(place, from, element >= 0);
      else  // fewer than four bytes cannot be copied so
        store_one(place, element >= 0 ? widened(__ldca(from)) : 0.0f);
    });
  }

  // Multiplies what this thread's copies of the slice have brought by its scale.
  __device__ __forceinline__ void apply_scale(Staged& slice, int k, int k_end) const {
    if (!operand.scale) return;
    for_each(k, k_end, [&](int j, const auto& row, const auto& step, int element) {
      if (element < 0) return;
      const float* scale = operand.scale + operand.scale_at(row, step);
      Element* value = slice.at(row_of(j), k_of(j));
      const auto s = load_lanes<kVector, ThroughL1>(scale, 0);
      auto v = load_lanes<kVector, Plainly>(value, 0);
#pragma unroll
      for (int lane = 0; lane < kVector; lane++) v.v[lane] *= s.v[lane];
      if constexpr (kVector > 1)
        *reinterpret_cast<uint4*>(value) = packed<Element>(v, 0);
      else
        store_one(value, v.v[0]);
    });
  }
};

// Operand fragments of the mma instructions from slices in shared memory, as they are stored; lane / 4 is the row of
// the fragment, lane % 4 its k, or its pair of k where these are bf16.
template <typename T, int kRows>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const StagedSlice<T, true, kRows>& slice, int row, int k) {
  const int lane = int(threadIdx.x) % kWarp;
  ptx::ldmatrix_x4(a, slice.at(row + lane % 16, k + lane / 16 * kLanes<T>));
}
template <int kRows>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const StagedSlice<bf16, false, kRows>& slice, int row, int k) {
  const int lane = int(threadIdx.x) % kWarp;
  ptx::ldmatrix_x4_trans(a, slice.at(row + lane / 8 % 2 * 8, k + lane % 8 + lane / 16 * 8));
}
template <int kRows>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const StagedSlice<float, false, kRows>& slice, int row,
                                       int k) {
  const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = __float_as_uint(*slice.at(row + lane / 4 + i % 2 * 8, k + lane % 4 + i / 2 * 4));
}
// Two fragments of B, of sixteen neighbouring rows.
template <typename T, int kRows>
__device__ __forceinline__ void load_b(unsigned (&b)[4], const StagedSlice<T, true, kRows>& slice, int row, int k) {
  const int lane = int(threadIdx.x) % kWarp;
  ptx::ldmatrix_x4(b, slice.at(row + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * kLanes<T>));
}
template <int kRows>
__device__ __forceinline__ void load_b(unsigned (&b)[4], const StagedSlice<bf16, false, kRows>& slice, int row, int k) {
  const int lane = int(threadIdx.x) % kWarp;
  ptx::ldmatrix_x4_trans(b, slice.at(row + lane / 16 * 8, k + lane % 8 + lane / 8 % 2 * 8));
}
template <int kRows>
__device__ __forceinline__ void load_b(unsigned (&b)[4], const StagedSlice<float, false, kRows>& slice, int row,
                                       int k) {
  const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int i = 0; i < 4; i++) b[i] = __float_as_uint(*slice.at(row + lane / 4 + i / 2 * 8, k + lane % 4 + i % 2 * 4));
}

__device__ __forceinline__ unsigned pack_bf16(unsigned low, unsigned high) {
  return two_bf16(__uint_as_float(low), __uint_as_float(high));
}
// The same in bf16, sixteen k. Of f32 slot k' of the instruction holds k = k' / 2 % 4 + k' % 2 * 4 + k' / 8 * 8.
template <bool kAlongK, int kRows>
__device__ __forceinline__ void load_a_bf16(unsigned (&a)[4], const StagedSlice<bf16, kAlongK, kRows>& slice, int row,
                                            int k) {
  load_a(a, slice, row, k);
}
template <bool kAlongK, int kRows>
__device__ __forceinline__ void load_a_bf16(unsigned (&a)[4], const StagedSlice<float, kAlongK, kRows>& slice, int row,
                                            int k) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    unsigned raw[4];
    load_a(raw, slice, row, k + half * 8);
    a[half * 2] = pack_bf16(raw[0], raw[2]);
    a[half * 2 + 1] = pack_bf16(raw[1], raw[3]);
  }
}
template <bool kAlongK, int kRows>
__device__ __forceinline__ void load_b_bf16(unsigned (&b)[2][2], const StagedSlice<bf16, kAlongK, kRows>& slice,
                                            int row, int k) {
  unsigned pair[4];
  load_b(pair, slice, row, k);
#pragma unroll
  for (int i = 0; i < 4; i++) b[i / 2][i % 2] = pair[i];
}
template <bool kAlongK, int kRows>
__device__ __forceinline__ void load_b_bf16(unsigned (&b)[2][2], const StagedSlice<float, kAlongK, kRows>& slice,
                                            int row, int k) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    unsigned raw[4];
    load_b(raw, slice, row, k + half * 8);
    b[0][half] = pack_bf16(raw[0], raw[1]);
    b[1][half] = pack_bf16(raw[2], raw[3]);
  }
}
// A number as the sum of two TF32 numbers, to 2^-22 of it.
__device__ __forceinline__ void split_tf32(unsigned value, unsigned& large, unsigned& small) {
  large = ptx::to_tf32(__uint_as_float(value));
  small = ptx::to_tf32(__uint_as_float(value) - __uint_as_float(large));
}

// The shape of a block's tile and of a warp's part of it.
template <Math kMath, int kM_, int kN_, int kWarpM, int kWarpN>
struct MmaTile {
  static constexpr int kM = kM_, kN = kN_;
  static constexpr int kThreads = kM / kWarpM * (kN / kWarpN) * kWarp;
  // Blocks per SM that ptxas has to leave registers for: without a number it spills where it need not.
  static constexpr int kBlocks = kThreads == 256 && kMath == Math::Tf32x3 ? 1 : 2;
  static constexpr int kAtomsM = kWarpM / 16, kAtomsN = kWarpN / 8;
  static constexpr int kSharedBytes = kStages * (kM + kN) * (kSliceBytes + 16);
  static_assert(kAtomsN % 2 == 0, "fragments of B come in pairs");

  template <typename A, typename B>
  struct Stages {
    StagedSlice<typename A::Element, A::kAlongK, kM> a[kStages];
    StagedSlice<typename B::Element, B::kAlongK, kN> b[kStages];
    static_assert(sizeof(typename A::Element) == sizeof(typename B::Element), "slices of one depth");
    static_assert(kStages * (sizeof(a[0]) + sizeof(b[0])) <= kSharedBytes, "what the host asks for suffices");
  };
  using Sums = float[kAtomsM][kAtomsN][4];
  Sums sums;

  __device__ __forceinline__ static int warp() { return int(threadIdx.x) / kWarp; }
  // The warp's first row and column in the tile.
  __device__ __forceinline__ static int first_m() { return warp() / (kN / kWarpN) * kWarpM; }
  __device__ __forceinline__ static int first_n() { return warp() % (kN / kWarpN) * kWarpN; }

  // Overwrites the sums. All threads of the block call it. `vectors`: whether 16 bytes may be copied at a time.
  template <typename A, typename B>
  __device__ __forceinline__ void multiply(const A& a, const B& b, int row, int column, int k_begin, int k_end,
                                           bool vectors) {
    DYNAMIC_SHARED(unsigned char, shared_bytes);
    auto& stages = *reinterpret_cast<Stages<A, B>*>(shared_bytes);
    constexpr int kMany = kLanes<typename A::Element>, kDepth = kSliceDepth<typename A::Element>;
    const SliceCopy<kM, kMany, kThreads, A> vectors_a(a, row);
    const SliceCopy<kN, kMany, kThreads, B> vectors_b(b, column);
    const SliceCopy<kM, 1, kThreads, A> singles_a(a, row);
    const SliceCopy<kN, 1, kThreads, B> singles_b(b, column);
    const int slices = (k_end - k_begin + kDepth - 1) / kDepth;
    // One group of copies per slice, empty past the last one, so that a slice's group is found by counting.
    const auto fetch = [&](int slice) {
      const int k = k_begin + slice * kDepth;
      auto& to_a = stages.a[slice % kStages];
      auto& to_b = stages.b[slice % kStages];
      if (slice < slices && vectors) {
        vectors_a.fetch(to_a, k, k_end);
        vectors_b.fetch(to_b, k, k_end);
      } else if (slice < slices) {
        singles_a.fetch(to_a, k, k_end);
        singles_b.fetch(to_b, k, k_end);
      }
      ptx::cp_async_commit();
    };
    const auto apply_scales = [&](auto& slice_a, auto& slice_b, int k) {
      if (vectors) {
        vectors_a.apply_scale(slice_a, k, k_end);
        vectors_b.apply_scale(slice_b, k, k_end);
      } else {
        singles_a.apply_scale(slice_a, k, k_end);
        singles_b.apply_scale(slice_b, k, k_end);
      }
    };
    clear(sums);
    __syncthreads();  // an earlier product may still be read from the stages
#pragma unroll 1
    for (int slice = 0; slice < kStages - 1; slice++) fetch(slice);
    for (int slice = 0; slice < slices; slice++) {
      const int stage = slice % kStages;
      ptx::cp_async_wait<kStages - 2>();
      apply_scales(stages.a[stage], stages.b[stage], k_begin + slice * kDepth);
      __syncthreads();
      fetch(slice + kStages - 1);  // into the stage that all threads have left
      multiply_slice(stages.a[stage], stages.b[stage]);
    }
  }

  template <typename SliceA, typename SliceB>
  __device__ __forceinline__ void multiply_slice(const SliceA& a, const SliceB& b) {
    if constexpr (kMath == Math::Tf32x3) {
      Sums slice_sums;
      clear(slice_sums);
      add_products(slice_sums, a, b);
#pragma unroll
      for (int m = 0; m < kAtomsM; m++)
#pragma unroll
        for (int n = 0; n < kAtomsN; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) sums[m][n][i] += slice_sums[m][n][i];
    } else {
      add_products(sums, a, b);
    }
  }

  template <typename SliceA, typename SliceB>
  __device__ __forceinline__ static void add_products(Sums& to, const SliceA& a, const SliceB& b) {
    if constexpr (kMath == Math::Bf16) {
#pragma unroll
      for (int k = 0; k < SliceA::kDepth; k += 16) add_products_bf16(to, a, b, k);
    } else {
#pragma unroll
      for (int k = 0; k < SliceA::kDepth; k += 8) add_products_tf32(to, a, b, k);
    }
  }

  template <typename SliceA, typename SliceB>
  __device__ __forceinline__ static void add_products_tf32(Sums& to, const SliceA& a, const SliceB& b, int k) {
    constexpr bool kSplit = kMath == Math::Tf32x3;
    unsigned u[kAtomsM][4], u_small[kSplit ? kAtomsM : 1][4];
#pragma unroll
    for (int m = 0; m < kAtomsM; m++) {
      load_a(u[m], a, first_m() + m * 16, k);
#pragma unroll
      for (int i = 0; i < 4; i++)
        if constexpr (kSplit)
          split_tf32(u[m][i], u[m][i], u_small[m][i]);
        else
          u[m][i] = ptx::to_tf32(__uint_as_float(u[m][i]));
    }
#pragma unroll
    for (int n = 0; n < kAtomsN; n += 2) {
      unsigned pair[4];
      load_b(pair, b, first_n() + n * 8, k);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        unsigned v[2], v_small[2];
#pragma unroll
        for (int i = 0; i < 2; i++) split_tf32(pair[half * 2 + i], v[i], v_small[i]);
#pragma unroll
        for (int m = 0; m < kAtomsM; m++) {
          if constexpr (kSplit) {  // the small products first
            ptx::mma_m16n8k8_tf32(to[m][n + half], u_small[m], v);
            ptx::mma_m16n8k8_tf32(to[m][n + half], u[m], v_small);
          }
          ptx::mma_m16n8k8_tf32(to[m][n + half], u[m], v);
        }
      }
    }
  }

  template <typename SliceA, typename SliceB>
  __device__ __forceinline__ static void add_products_bf16(Sums& to, const SliceA& a, const SliceB& b, int k) {
    unsigned u[kAtomsM][4];
#pragma unroll
    for (int m = 0; m < kAtomsM; m++) load_a_bf16(u[m], a, first_m() + m * 16, k);
#pragma unroll
    for (int n = 0; n < kAtomsN; n += 2) {
      unsigned v[2][2];
      load_b_bf16(v, b, first_n() + n * 8, k);
#pragma unroll
      for (int m = 0; m < kAtomsM; m++) {
        ptx::mma_m16n8k16_bf16(to[m][n], u[m], v[0]);
        ptx::mma_m16n8k16_bf16(to[m][n + 1], u[m], v[1]);
      }
    }
  }

  // Calls visit(row, column, sum) for the thread's outputs inside [rows, columns].
  template <typename Visit>
  __device__ __forceinline__ void for_each(int row, int column, int rows, int columns, Visit visit) {
    const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int m = 0; m < kAtomsM; m++)
#pragma unroll
      for (int n = 0; n < kAtomsN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int r = row + first_m() + m * 16 + i / 2 * 8 + lane / 4;
          const int c = column + first_n() + n * 8 + lane % 4 * 2 + i % 2;
          if (r < rows && c < columns) visit(r, c, sums[m][n][i]);
        }
  }

  // Stores the thread's outputs inside [rows, columns], two neighbours at once where they are aligned for that.
  template <typename Output>
  __device__ __forceinline__ void store(const Output& output, int row, int column, int rows, int columns) const {
    const int lane = int(threadIdx.x) % kWarp;
    const bool pairs = in_pairs(output, columns);
#pragma unroll
    for (int m = 0; m < kAtomsM; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int r = row + first_m() + m * 16 + half * 8 + lane / 4;
        if (r >= rows) continue;
        const auto out = output.row(r);
#pragma unroll
        for (int n = 0; n < kAtomsN; n++) {
          const int c = column + first_n() + n * 8 + lane % 4 * 2;
          store_two(output, out, c, columns, pairs, sums[m][n][half * 2], sums[m][n][half * 2 + 1]);
        }
      }
  }
};

template <Math kMath>
using LargeMmaTile = MmaTile<kMath, 128, 128, 64, 32>;
template <Math kMath>
using SmallMmaTile = MmaTile<kMath, 64, 64, 32, 32>;
