// What a chip computes at most, for comparison: chains of products in registers, nothing from memory.
//   fma_peak_f32   per thread kChains times x <- x a + b, `rounds` times           2 kChains rounds FLOP per thread
//   mma_peak_bf16  per warp kChains times D <- A B + D with 16 x 8 x 16 products   4096 kChains rounds FLOP per warp
// One number per thread is written, so that the chains are not removed.
//
// Threads: blocks of 256, as many as fill the chip several times.
// Cost: see above; bound by the FMA units and by mma.sync. (wgmma reaches more on Hopper; this is what the portable
// kernels are measured against.)
// Numerics: f32; the chains converge to b / (1 - a), respectively count up in steps that f32 holds.
// Launched by src/device/peak.rs.
#include "common.cuh"

constexpr int kChains = 8;

extern "C" __global__ void __launch_bounds__(256) fma_peak_f32(float* out, int rounds, float a, float b) {
  dependent_launch();
  float x[kChains];
#pragma unroll
  for (int c = 0; c < kChains; c++) x[c] = float(threadIdx.x + unsigned(c));
  for (int round = 0; round < rounds; round++)
#pragma unroll
    for (int c = 0; c < kChains; c++) x[c] = fmaf(x[c], a, b);
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kChains; c++) sum += x[c];
  out[global_thread()] = sum;
}

extern "C" __global__ void __launch_bounds__(256) mma_peak_bf16(float* out, int rounds) {
  dependent_launch();
  constexpr unsigned kOnes = 0x3f803f80u;  // two bf16
  const unsigned a[4] = {kOnes, kOnes, kOnes, kOnes}, b[2] = {kOnes, kOnes};
  float d[kChains][4] = {};
  for (int round = 0; round < rounds; round++)
#pragma unroll
    for (int c = 0; c < kChains; c++) ptx::mma_m16n8k16_bf16(d[c], a, b);
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kChains; c++) sum += d[c][0] + d[c][1] + d[c][2] + d[c][3];
  out[global_thread()] = sum;
}
