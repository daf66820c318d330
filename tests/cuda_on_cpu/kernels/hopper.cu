// Test kernel: a product with TMA loads, an mbarrier pipeline and wgmma, and its mutants.
//   c[m][n] = sum_k a[m][k] b[n][k], a and b in bf16 with k contiguous, c in f32.
// Tiles of 64 x kColumns x 64, one per block. 256 threads: the first warpgroup loads, the second multiplies.
#include "common.cuh"

constexpr int kTile = 64, kStages = 3;

template <int kColumns>
struct __align__(1024) Stages {
  __nv_bfloat16 a[kStages][kTile * kTile], b[kStages][kColumns * kTile];
  uint64_t full[kStages], empty[kStages];
};

#if RECANT_HAS_SM90A

enum class Wait { Full, NotForLoads, NotForProducts };

template <int kColumns>
__device__ __forceinline__ void load_tiles(Stages<kColumns>* s, const CUtensorMap* a, const CUtensorMap* b,
                                           int k_tiles) {
  for (int i = 0; i < k_tiles; i++) {
    int stage = i % kStages;
    if (i >= kStages) ptx::mbar_wait(&s->empty[stage], (i / kStages - 1) & 1);
    ptx::mbar_expect_tx(&s->full[stage], (kTile + kColumns) * kTile * int(sizeof(__nv_bfloat16)));
    ptx::tma_load_2d(s->a[stage], a, i * kTile, blockIdx.y * kTile, &s->full[stage]);
    ptx::tma_load_2d(s->b[stage], b, i * kTile, blockIdx.x * kColumns, &s->full[stage]);
  }
}

template <int kColumns, Wait kWait>
__device__ __forceinline__ void multiply_tiles(Stages<kColumns>* s, float (&sum)[kColumns / 2], int k_tiles) {
  for (int i = 0; i < k_tiles; i++) {
    int stage = i % kStages;
    if (kWait != Wait::NotForLoads) ptx::mbar_wait(&s->full[stage], (i / kStages) & 1);
    ptx::wgmma_fence();
    uint64_t a = ptx::smem_desc_sw128(s->a[stage]), b = ptx::smem_desc_sw128(s->b[stage]);
#  pragma unroll
    for (int k = 0; k < kTile / 16; k++) ptx::wgmma_bf16<kColumns>(sum, a + k * 2, b + k * 2, i + k > 0);
    ptx::wgmma_commit();
    if (kWait != Wait::NotForProducts) ptx::wgmma_wait<0>();
    ptx::mbar_arrive(&s->empty[stage]);
  }
  ptx::wgmma_wait<0>();
}

template <int kColumns, Wait kWait>
__device__ void matmul(const CUtensorMap* a, const CUtensorMap* b, float* c, int m, int n, int k) {
  DYNAMIC_SHARED(Stages<kColumns>, s);
  int k_tiles = (k + kTile - 1) / kTile;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      ptx::mbar_init(&s->full[i], 1);
      ptx::mbar_init(&s->empty[i], 128);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::reg_dealloc<40>();
    if (threadIdx.x == 0) load_tiles(s, a, b, k_tiles);
    return;
  }
  ptx::reg_alloc<232>();
  float sum[kColumns / 2];
  multiply_tiles<kColumns, kWait>(s, sum, k_tiles);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4;
#  pragma unroll
  for (int i = 0; i < kColumns / 2; i++) {
    int row = blockIdx.y * kTile + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    int column = blockIdx.x * kColumns + lane % 4 * 2 + i % 2 + i / 4 * 8;
    if (row < m && column < n) c[row * n + column] = sum[i];
  }
}
#  define MATMUL(columns, wait) matmul<columns, wait>(&a, &b, c, m, n, k)
#else
#  define MATMUL(columns, wait) (void)0
#endif

extern "C" __global__ void __launch_bounds__(256, 1)
    test_matmul_sm90_64(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c, int m,
                        int n, int k) {
  MATMUL(64, Wait::Full);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    test_matmul_sm90_128(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c, int m,
                         int n, int k) {
  MATMUL(128, Wait::Full);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    test_matmul_sm90_256(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c, int m,
                         int n, int k) {
  MATMUL(256, Wait::Full);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    mutant_missing_load_wait(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c,
                             int m, int n, int k) {
  MATMUL(64, Wait::NotForLoads);
}
extern "C" __global__ void __launch_bounds__(256, 1)
    mutant_missing_product_wait(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c,
                                int m, int n, int k) {
  MATMUL(64, Wait::NotForProducts);
}

// ---- operands whose rows are contiguous, and boxes with steps

#if RECANT_HAS_SM90A
// One block, one warpgroup: c[64][128] = sum_k a[k][m] b[k][n] over 64 of k. b is two runs of 64 columns.
template <int kTransposeB, int kBlock>
__device__ void matmul_of_columns(const CUtensorMap* a, const CUtensorMap* b, float* c) {
  struct __align__(1024) Tiles {
    __nv_bfloat16 a[kTile * kTile], b[2][kTile * kTile];
    uint64_t full;
  };
  DYNAMIC_SHARED(Tiles, s);
  if (threadIdx.x == 0) {
    ptx::mbar_init(&s->full, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbar_expect_tx(&s->full, 3 * kTile * kTile * int(sizeof(__nv_bfloat16)));
    ptx::tma_load_2d(s->a, a, 0, 0, &s->full);
    ptx::tma_load_2d(s->b[0], b, 0, 0, &s->full);
    ptx::tma_load_2d(s->b[1], b, kTile, 0, &s->full);
  }
  ptx::mbar_wait(&s->full, 0);
  float sum[64];
  ptx::wgmma_fence();
#  pragma unroll
  for (int k = 0; k < kTile / 16; k++)
    ptx::wgmma_bf16<128, 1, kTransposeB>(sum, ptx::smem_desc_sw128_transposed(s->a, 0) + k * 128,
                                         ptx::smem_desc_sw128_transposed(s->b, kBlock) + k * 128, k > 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#  pragma unroll
  for (int i = 0; i < 64; i++)
    c[(warp * 16 + lane / 4 + i / 2 % 2 * 8) * 128 + lane % 4 * 2 + i % 2 + i / 4 * 8] = sum[i];
}
#  define OF_COLUMNS(transpose, block) matmul_of_columns<transpose, block>(&a, &b, c)
#else
#  define OF_COLUMNS(transpose, block) (void)0
#endif

extern "C" __global__ void __launch_bounds__(128, 1)
    test_matmul_of_columns(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c) {
  OF_COLUMNS(1, kTile * kTile * 2);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    mutant_missing_transpose(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c) {
  OF_COLUMNS(0, kTile * kTile * 2);
}
extern "C" __global__ void __launch_bounds__(128, 1)
    mutant_wrong_block(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* c) {
  OF_COLUMNS(1, kTile * kTile);
}

#if RECANT_HAS_SM90A
// y[r][64] = the rows of a box that the map loads, taken out of the swizzle; `bytes` are waited for.
__device__ void load_box(const CUtensorMap* map, float* y, int first_row, int rows, int bytes) {
  struct __align__(1024) Box {
    __nv_bfloat16 rows[8][64];
    uint64_t full;
  };
  DYNAMIC_SHARED(Box, s);
  if (threadIdx.x == 0) {
    ptx::mbar_init(&s->full, 1);
    ptx::fence_barrier_init();
    ptx::mbar_expect_tx(&s->full, bytes);
    ptx::tma_load_2d(s->rows, map, 0, first_row, &s->full);
  }
  __syncthreads();
  ptx::mbar_wait(&s->full, 0);
  for (int i = threadIdx.x; i < rows * 64; i += 32)
    y[i] = __bfloat162float(s->rows[i / 64][((i % 64 / 8) ^ (i / 64 % 8)) * 8 + i % 8]);
}
#  define LOAD_BOX load_box(&map, y, first_row, rows, bytes)
#else
#  define LOAD_BOX (void)0
#endif

extern "C" __global__ void __launch_bounds__(32, 1)
    test_tma_box(const __grid_constant__ CUtensorMap map, float* y, int first_row, int rows, int bytes) {
  LOAD_BOX;
}
