// Mean and covariance of features that come in batches x [N,D], N images of D features.
//   feature_shift        s[d]    = f32(sum_n x[n,d] / N), of the first batch
//   feature_products     t[d]   += sum_n (x[n,d] - s[d])            P[i,j] += sum_n (x[n,i] - s[i]) (x[n,j] - s[j])
//   feature_covariance   mu[d]   = t[d] / M + s[d]                  sigma[i,j] = (P[i,j] - t[i] t[j] / M) / (M - 1)
// M is the number of images of all batches. t [D] and P [D,D] are f64 and start at zero; of P only the tiles on and
// below the diagonal are touched. Any shift gives the same covariance; one near the mean keeps the digits of
// covariances that are much smaller than the squared mean. It is an f32, so that x - s is the sum of two f32 without an
// error.
//
// Threads: a block per tile of 64 x 64 of P, row of tiles i >= column of tiles j, numbered along the rows; blocks on
// the diagonal also have the sums. _f64: 128 threads, four warps of 32 x 32, mma.m8n8k4 in double precision. _f32x2:
// 256 threads of 4 x 4. feature_shift: a thread per feature. feature_covariance: a thread per element, grid-stride.
// Cost: N D (D + 64) FLOP, half of the full square, in f64 (_f64) or 12 f32 operations for every 2 (_f32x2); P is read
// and written once a batch, 8 D (D + 64) bytes, 34.6 MB for D = 2048. With 256 images: 1.1 GFLOP, 19 us at the 57
// TFLOP/s that double-precision tensor cores reach on Hopper. Chips whose f64 units are 1/64 of the f32 ones take
// _f32x2.
// Numerics: _f64 adds the images of all batches in groups of four in their order: batches whose sizes are multiples of
// four may be cut differently with equal results. _f32x2 keeps products and sums of a batch as the sum of two f32, to
// about 2^-45 of the sum of absolute values, and adds batches in f64.
// Launched by src/metrics/feature_stats/cuda.rs.
#include "common.cuh"

struct FeatureParams {
  int32_t count;  // images of the batch (feature_covariance: of all batches)
  int32_t dims;
};
static_assert(sizeof(FeatureParams) == 8, "keep in step with src/metrics/feature_stats/cuda.rs");

constexpr int kTile = 64;
constexpr int kImages = 16;  // per slice
constexpr int kStages = 3;

// Which tile of the lower triangle a block has.
struct TilePlace {
  int row, column;  // first features

  __device__ __forceinline__ explicit TilePlace(int index) {
    int r = int((sqrtf(8.0f * float(index) + 1.0f) - 1.0f) * 0.5f);
    while (r * (r + 1) / 2 > index) r--;
    while ((r + 1) * (r + 2) / 2 <= index) r++;
    row = r * kTile;
    column = (index - r * (r + 1) / 2) * kTile;
  }
};

// Eight floats of padding put the four images and eight features that a warp reads together into different banks.
using Slice = float[kImages][kTile + 8];

// A ring of slices of the features of a tile's rows and columns.
template <int kThreads>
struct Batch {
  const float* x;
  const FeatureParams& p;
  TilePlace place;
  Slice (&rows)[kStages];
  Slice (&columns)[kStages];

  template <int kVector>
  __device__ __forceinline__ void copy(Slice& to, int image, int feature) const {
    constexpr int kLine = kTile / kVector;
    for (int i = int(threadIdx.x); i < kImages * kLine; i += kThreads) {
      const int n = image + i / kLine, d = feature + i % kLine * kVector;
      const bool inside = n < p.count && d < p.dims;
      const float* from = x + (inside ? int64_t(n) * p.dims + d : 0);
      if constexpr (kVector == 4)
        ptx::cp_async16(&to[i / kLine][i % kLine * kVector], from, inside);
      else
        ptx::cp_async4(&to[i / kLine][i % kLine * kVector], from, inside);
    }
  }
  // One group of copies per slice, empty past the last one.
  __device__ __forceinline__ void fetch(int slice) const {
    const int image = slice * kImages;
    if (image < p.count) {
      if (p.dims % 4 == 0 && all_aligned16(x)) {
        copy<4>(rows[slice % kStages], image, place.row);
        copy<4>(columns[slice % kStages], image, place.column);
      } else {
        copy<1>(rows[slice % kStages], image, place.row);
        copy<1>(columns[slice % kStages], image, place.column);
      }
    }
    ptx::cp_async_commit();
  }
  // Calls visit(rows, columns, images of the slice) for all slices in their order.
  template <typename Visit>
  __device__ __forceinline__ void for_each_slice(Visit visit) const {
    for (int slice = 0; slice < kStages - 1; slice++) fetch(slice);
    for (int slice = 0; slice * kImages < p.count; slice++) {
      ptx::cp_async_wait<kStages - 2>();
      __syncthreads();
      fetch(slice + kStages - 1);
      visit(rows[slice % kStages], columns[slice % kStages], min(kImages, p.count - slice * kImages));
    }
  }
};

__device__ __forceinline__ float shift_of(const float* shift, int d, const FeatureParams& p) {
  return d < p.dims ? __ldca(shift + d) : 0.0f;
}

extern "C" __global__ void feature_shift_f32(const float* x, float* shift, FeatureParams p) {
  dependent_launch();
  for (int64_t d = global_thread(); d < p.dims; d += grid_threads()) {
    double sum = 0.0;
    for (int n = 0; n < p.count; n++) sum += double(__ldca(x + int64_t(n) * p.dims + d));
    shift[d] = float(sum / double(p.count));
  }
}

// ---- in double precision

constexpr int kMmaThreads = 128;

// The warp's 32 x 32 of P: four by four products of 8 x 8.
struct WarpProducts {
  double sums[4][4][2];
  double row_shift[4], column_shift[4];

  __device__ __forceinline__ static int lane() { return int(threadIdx.x) % kWarp; }
  __device__ __forceinline__ static int first_row() { return int(threadIdx.x) / kWarp / 2 * 32 + lane() / 4; }
  __device__ __forceinline__ static int first_column() { return int(threadIdx.x) / kWarp % 2 * 32; }

  __device__ __forceinline__ WarpProducts(const float* shift, const TilePlace& place, const FeatureParams& p) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      row_shift[i] = double(shift_of(shift, place.row + first_row() + i * 8, p));
      column_shift[i] = double(shift_of(shift, place.column + first_column() + lane() / 4 + i * 8, p));
    }
  }
  // Calls visit(element of P, its sum) for those inside.
  template <typename Visit>
  __device__ __forceinline__ void for_each(const TilePlace& place, int dims, Visit visit) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int row = place.row + first_row() + i * 8;
          const int column = place.column + first_column() + j * 8 + lane() % 4 * 2 + half;
          if (row < dims && column < dims)
            visit(int64_t(row) * dims + column, sums[i][j][half]);
          else
            sums[i][j][half] = 0.0;
        }
  }
  __device__ __forceinline__ void add(const Slice& rows, const Slice& columns, int images) {
#pragma unroll
    for (int k = 0; k < kImages; k += 4) {
      const int image = k + lane() % 4;
      double a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        // Past the last image one zero suffices.
        a[i] = image < images ? double(rows[image][first_row() + i * 8]) - row_shift[i] : 0.0;
        b[i] = double(columns[image][first_column() + lane() / 4 + i * 8]) - column_shift[i];
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) ptx::mma_m8n8k4_f64(sums[i][j], a[i], b[j]);
    }
  }
};

extern "C" __global__ void __launch_bounds__(kMmaThreads)
    feature_products_f64(const float* x, const float* shift, double* sums, double* products, FeatureParams p) {
  dependent_launch();
  SHARED(Slice, rows, [kStages]);
  SHARED(Slice, columns, [kStages]);
  const TilePlace place{int(blockIdx.x)};
  const Batch<kMmaThreads> batch{x, p, place, rows, columns};
  WarpProducts warp(shift, place, p);
  warp.for_each(place, p.dims, [&](int64_t at, double& sum) { sum = products[at]; });
  const int d = place.row + int(threadIdx.x);
  const bool has_sum = place.row == place.column && int(threadIdx.x) < kTile && d < p.dims;
  const double own_shift = has_sum ? double(__ldca(shift + d)) : 0.0;
  double sum = has_sum ? sums[d] : 0.0;
  batch.for_each_slice([&](const Slice& r, const Slice& c, int images) {
    if (has_sum)
      for (int n = 0; n < images; n++) sum += double(r[n][threadIdx.x]) - own_shift;
    warp.add(r, c, images);
  });
  warp.for_each(place, p.dims, [&](int64_t at, double& sum) { products[at] = sum; });
  if (has_sum) sums[d] = sum;
}

// ---- as sums of two f32

constexpr int kPairThreads = 256;

struct Pair {
  float high, low;
};
// a - b = high + low, exactly.
__device__ __forceinline__ Pair difference(float a, float b) {
  const float high = __fsub_rn(a, b), back = __fsub_rn(high, a);
  return {high, __fsub_rn(__fsub_rn(a, __fsub_rn(high, back)), __fadd_rn(b, back))};
}
// sum += value + low: the rounding error of the high parts is kept in the low part.
__device__ __forceinline__ void add(Pair& sum, float value, float low) {
  const float high = __fadd_rn(sum.high, value), back = __fsub_rn(high, sum.high);
  const float error = __fadd_rn(__fsub_rn(sum.high, __fsub_rn(high, back)), __fsub_rn(value, back));
  sum = {high, __fadd_rn(sum.low, __fadd_rn(error, low))};
}
__device__ __forceinline__ void add_product(Pair& sum, const Pair& a, const Pair& b) {
  const float product = __fmul_rn(a.high, b.high);
  const float rest = __fmaf_rn(a.high, b.high, -product);
  add(sum, product, __fmaf_rn(a.high, b.low, __fmaf_rn(a.low, b.high, rest)));
}

extern "C" __global__ void __launch_bounds__(kPairThreads)
    feature_products_f32x2(const float* x, const float* shift, double* sums, double* products, FeatureParams p) {
  dependent_launch();
  SHARED(Slice, rows, [kStages]);
  SHARED(Slice, columns, [kStages]);
  const TilePlace place{int(blockIdx.x)};
  const Batch<kPairThreads> batch{x, p, place, rows, columns};
  // Neighbouring threads are neighbouring columns, sixteen apart from each other in a thread.
  const int row = int(threadIdx.x) / 16 * 4, column = int(threadIdx.x) % 16;
  float row_shift[4], column_shift[4];
  Pair pairs[4][4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    row_shift[i] = shift_of(shift, place.row + row + i, p);
    column_shift[i] = shift_of(shift, place.column + column + i * 16, p);
#pragma unroll
    for (int j = 0; j < 4; j++) pairs[i][j] = {0.0f, 0.0f};
  }
  const int d = place.row + int(threadIdx.x);
  const bool has_sum = place.row == place.column && int(threadIdx.x) < kTile && d < p.dims;
  const float own_shift = has_sum ? __ldca(shift + d) : 0.0f;
  Pair sum{0.0f, 0.0f};
  batch.for_each_slice([&](const Slice& r, const Slice& c, int images) {
    for (int n = 0; n < images; n++) {
      if (has_sum) {
        const Pair own = difference(r[n][threadIdx.x], own_shift);
        add(sum, own.high, own.low);
      }
      Pair a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        a[i] = difference(r[n][row + i], row_shift[i]);
        b[i] = difference(c[n][column + i * 16], column_shift[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) add_product(pairs[i][j], a[i], b[j]);
    }
  });
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int r = place.row + row + i, c = place.column + column + j * 16;
      if (r < p.dims && c < p.dims)
        products[int64_t(r) * p.dims + c] += double(pairs[i][j].high) + double(pairs[i][j].low);
    }
  if (has_sum) sums[d] += double(sum.high) + double(sum.low);
}

// ---- at the end

extern "C" __global__ void feature_covariance_f64(const float* shift, const double* sums, const double* products,
                                                  double* mu, double* sigma, FeatureParams p) {
  dependent_launch();
  const double count = double(p.count);
  for (int64_t at = global_thread(); at < int64_t(p.dims) * p.dims; at += grid_threads()) {
    const int i = int(at / p.dims), j = int(at % p.dims);
    const double product = products[int64_t(max(i, j)) * p.dims + min(i, j)];
    sigma[at] = (product - sums[i] * sums[j] / count) / (count - 1.0);
    if (j == 0) mu[i] = sums[i] / count + double(__ldca(shift + i));
  }
}
