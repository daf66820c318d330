// Copies between strided views: permute, slice, concatenate, pad, repeat.
//   y[sum_d index_d to_d] = x[sum_d index_d from_d]        for all indices of six dimensions, most of size 1
// A stride of 0 in `from` repeats. The host merges dimensions, so six are enough for what the engine does.
//
// Threads: one per element of 2, 4 or 16 bytes, grid-stride, the last dimension fastest; the 16-byte entry moves four
// floats or eight bf16 at a time, and sizes and strides are counted in those.
// Cost per element: 8 bytes (bf16: 4) and an integer division per dimension. Bound by memory where one side is
// contiguous.
// Numerics: exact.
// Launched by src/ops/layout/cuda.rs.
#include "common.cuh"

constexpr int kDimensions = 6;

struct CopyParams {
  int32_t count;
  int32_t size[kDimensions], from[kDimensions], to[kDimensions];
};
static_assert(sizeof(CopyParams) == 76, "keep in step with src/ops/layout/cuda.rs");

template <typename T>
__device__ __forceinline__ void copy_strided(const T* x, T* y, const CopyParams& p) {
  dependent_launch();
  for (int64_t i = global_thread(); i < p.count; i += grid_threads()) {
    unsigned rest = unsigned(i);
    int64_t from = 0, to = 0;
#pragma unroll
    for (int d = kDimensions - 1; d >= 0; d--) {
      if (p.size[d] == 1) continue;
      const unsigned index = rest % unsigned(p.size[d]);
      rest /= unsigned(p.size[d]);
      from += int64_t(index) * p.from[d];
      to += int64_t(index) * p.to[d];
    }
    y[to] = __ldca(x + from);
  }
}

extern "C" __global__ void copy_strided_f32(const float* x, float* y, CopyParams p) { copy_strided(x, y, p); }

extern "C" __global__ void copy_strided_bf16(const bf16* x, bf16* y, CopyParams p) { copy_strided(x, y, p); }

extern "C" __global__ void copy_strided_f32x4(const float4* x, float4* y, CopyParams p) { copy_strided(x, y, p); }
