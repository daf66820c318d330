// Product of two matrices, either of them read transposed.
//   c[m,n] = alpha sum_k A[m,k] B[k,n]      A = a or a^T, B = b or b^T
// A long sum over few outputs is cut into parts (blockIdx.z): part q is c[q,m,n], and reduce.cu adds the parts.
//
// Threads: one block per 64 x 64 outputs and part; see gemm_tile.cuh.
// Cost: 2 M N K FLOP; at least 4 (M K + K N + M N) bytes. The engine's products (a batch of latents times a square
// weight) are bound by reading the weight.
// Numerics: f32, k ascending within a part; alpha multiplies the part's sum.
// Launched by src/ops/matmul/cuda.rs.
#include "gemm_tile.cuh"

struct MatmulParams {
  int32_t m, n, k;
  int32_t part;  // of k
  float alpha;
};
static_assert(sizeof(MatmulParams) == 20, "keep in step with src/ops/matmul/cuda.rs");

// Row r of the operand holds elements (r, k). kRowMajor: k is contiguous, else r is.
template <bool kRowMajor>
struct MatrixOperand {
  using Element = float;
  static constexpr bool kAlongK = kRowMajor;
  static constexpr const float* scale = nullptr;
  using Row = int;
  using Step = int;
  const float* data;
  int rows, depth;

  __device__ __forceinline__ Row row(int r) const { return r < rows ? r : -1; }
  __device__ __forceinline__ Step step(int k) const { return k; }
  __device__ __forceinline__ int at(Row r, Step k) const {
    if (r < 0) return -1;
    return kRowMajor ? r * depth + k : k * rows + r;
  }
  __device__ __forceinline__ int scale_at(Row, Step) const { return 0; }
};

// Part q of the sums.
struct MatrixOutput {
  struct Row {
    int64_t at;
  };
  float* data;
  int columns;
  float alpha;

  __device__ __forceinline__ Row row(int r) const { return {int64_t(r) * columns}; }
  __device__ __forceinline__ float value(const Row&, int, float sum) const { return alpha * sum; }
};

template <bool kRowMajorA, bool kRowMajorB>
__device__ __forceinline__ void matmul(const float* a, const float* b, float* c, const MatmulParams& p) {
  dependent_launch();
  const int row = int(blockIdx.x) * WideTile::kM, column = int(blockIdx.y) * WideTile::kN;
  const int begin = int(blockIdx.z) * p.part, end = min(begin + p.part, p.k);
  WideTile tile;
  tile.multiply(MatrixOperand<kRowMajorA>{a, p.m, p.k}, MatrixOperand<kRowMajorB>{b, p.n, p.k}, row, column, begin,
                end);
  tile.store(MatrixOutput{c + int64_t(blockIdx.z) * p.m * p.n, p.n, p.alpha}, row, column, p.m, p.n);
}

// n: as it lies, t: transposed; first a, then b.
extern "C" __global__ void __launch_bounds__(kTileThreads)
    matmul_nn_f32(const float* a, const float* b, float* c, MatmulParams p) {
  matmul<true, false>(a, b, c, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    matmul_nt_f32(const float* a, const float* b, float* c, MatmulParams p) {
  matmul<true, true>(a, b, c, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    matmul_tn_f32(const float* a, const float* b, float* c, MatmulParams p) {
  matmul<false, false>(a, b, c, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    matmul_tt_f32(const float* a, const float* b, float* c, MatmulParams p) {
  matmul<false, true>(a, b, c, p);
}
