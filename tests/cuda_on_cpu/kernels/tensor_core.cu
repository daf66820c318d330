// Test kernels: one product per tensor-core wrapper, with fragments placed by hand from the PTX manual's tables.
#include "common.cuh"

__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
  return unsigned(__bfloat16_as_ushort(__float2bfloat16(low))) | unsigned(__bfloat16_as_ushort(__float2bfloat16(high)))
                                                                     << 16;
}

__device__ __forceinline__ void store_d(float* d, const float (&fragment)[4]) {
  int group = threadIdx.x / 4, quad = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + quad * 2 + i % 2] = fragment[i];
}

// d[16][8] = a[16][16] b[16][8], one warp.
extern "C" __global__ void test_mma_bf16(const float* a, const float* b, float* d) {
  int group = threadIdx.x / 4, quad = threadIdx.x % 4;
  auto a_pair = [&](int row, int k) { return pack_bf16(a[row * 16 + k], a[row * 16 + k + 1]); };
  auto b_pair = [&](int k) { return pack_bf16(b[k * 8 + group], b[(k + 1) * 8 + group]); };
  unsigned fa[4] = {a_pair(group, quad * 2), a_pair(group + 8, quad * 2), a_pair(group, quad * 2 + 8),
                    a_pair(group + 8, quad * 2 + 8)};
  unsigned fb[2] = {b_pair(quad * 2), b_pair(quad * 2 + 8)};
  float fd[4] = {};
  ptx::mma_m16n8k16_bf16(fd, fa, fb);
  store_d(d, fd);
}

// The same with fragments from shared memory by ldmatrix: a row-major, b row-major and transposed on the way.
extern "C" __global__ void test_ldmatrix_bf16(const float* a, const float* b, float* d) {
  SHARED(__nv_bfloat16, a_tile, [16][16 + 8]);
  SHARED(__nv_bfloat16, b_tile, [16][8]);
  for (int i = threadIdx.x; i < 256; i += kWarp) a_tile[i / 16][i % 16] = __float2bfloat16(a[i]);
  for (int i = threadIdx.x; i < 128; i += kWarp) b_tile[i / 8][i % 8] = __float2bfloat16(b[i]);
  __syncthreads();
  unsigned fa[4], fb[2];
  ptx::ldmatrix_x4(fa, &a_tile[threadIdx.x % 16][threadIdx.x / 16 * 8]);
  ptx::ldmatrix_x2_trans(fb, &b_tile[threadIdx.x % 16][0]);
  float fd[4] = {};
  ptx::mma_m16n8k16_bf16(fd, fa, fb);
  store_d(d, fd);
}

// d[16][8] = a[16][8] b[8][8] in TF32, one warp.
extern "C" __global__ void test_mma_tf32(const float* a, const float* b, float* d) {
  int group = threadIdx.x / 4, quad = threadIdx.x % 4;
  unsigned fa[4] = {ptx::to_tf32(a[group * 8 + quad]), ptx::to_tf32(a[(group + 8) * 8 + quad]),
                    ptx::to_tf32(a[group * 8 + quad + 4]), ptx::to_tf32(a[(group + 8) * 8 + quad + 4])};
  unsigned fb[2] = {ptx::to_tf32(b[quad * 8 + group]), ptx::to_tf32(b[(quad + 4) * 8 + group])};
  float fd[4] = {};
  ptx::mma_m16n8k8_tf32(fd, fa, fb);
  store_d(d, fd);
}

// d[8][8] = a[8][4] b[4][8] in double precision, one warp.
extern "C" __global__ void test_mma_f64(const double* a, const double* b, double* d) {
  int group = threadIdx.x / 4, quad = threadIdx.x % 4;
  double fd[2] = {};
  ptx::mma_m8n8k4_f64(fd, a[group * 4 + quad], b[quad * 8 + group]);
  d[group * 8 + quad * 2] = fd[0];
  d[group * 8 + quad * 2 + 1] = fd[1];
}
