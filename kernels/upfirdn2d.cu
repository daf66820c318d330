// Pad, upsample, filter with a separable FIR filter, downsample.
//   y[n,oy,ox,c] = then(sum_{tx} fx[tx] sum_{ty} fy[ty] up(x)[n, oy down + ty - pad_y, ox down + tx - pad_x, c])
// up(x) puts up - 1 zeros after each pixel; of the taps only those that meet a pixel are visited. fy holds the gain;
// both filters are in reading order (the host has flipped them). then() is noise, bias and activation (epilogue.cuh),
// or nothing, which is a product with one. x and y are f32 or bf16, as the entry says.
//
// Threads: 16 bytes of the channels of an output pixel each where C and the addresses allow, else one element;
// grid-stride. Neighbouring outputs share their inputs through the caches.
// Cost per output, up = 1: 8 bytes, in bf16 4 (each input is read taps^2 / down^2 times, from the caches after the
// first), taps (taps + 1) multiply-adds: 20 for StyleGAN2's four taps. Bound by memory on the large layers.
// Numerics: f32; columns first, then rows, taps ascending. In bf16 rounded once, when stored.
// Launched by src/ops/upfirdn2d/cuda.rs.
#include "epilogue.cuh"

constexpr int kMostTaps = 8;

struct Upfirdn2dParams {
  int32_t count;                     // of outputs
  int32_t in_h, in_w, out_h, out_w;  //
  int32_t channels, up, down, pad_y, pad_x, taps;
  float fy[kMostTaps], fx[kMostTaps];
};
static_assert(sizeof(Upfirdn2dParams) == 108, "keep in step with src/ops/upfirdn2d/cuda.rs");

// The first tap that meets a pixel at output `out`, and that pixel (which may lie outside).
struct Meeting {
  int tap, pixel;
};
__device__ __forceinline__ Meeting first_meeting(int out, int pad, const Upfirdn2dParams& p) {
  const int start = out * p.down - pad;  // position of tap 0 in up(x)
  const int remainder = start % p.up;
  const int tap = remainder == 0 ? 0 : remainder < 0 ? -remainder : p.up - remainder;
  return {tap, (start + tap) / p.up};
}

template <typename T>
struct Upfirdn2dPass {
  const T* x;
  T* y;
  const float* fy;  // in shared memory: registers cannot be indexed
  const float* fx;
  const Upfirdn2dParams& p;
  Epilogue then;

  template <int N>
  __device__ __forceinline__ void visit(int64_t i) const {
    const unsigned at = unsigned(i), c = at % unsigned(p.channels), pixel = at / unsigned(p.channels);
    const unsigned row = pixel / unsigned(p.out_w), n = row / unsigned(p.out_h);
    const Meeting my = first_meeting(int(row % unsigned(p.out_h)), p.pad_y, p);
    const Meeting mx = first_meeting(int(pixel % unsigned(p.out_w)), p.pad_x, p);
    Lanes<N> sum{};
    for (int tx = mx.tap, ix = mx.pixel; tx < p.taps; tx += p.up, ix++) {
      if (ix < 0 || ix >= p.in_w) continue;
      Lanes<N> column{};
      for (int ty = my.tap, iy = my.pixel; ty < p.taps; ty += p.up, iy++) {
        if (iy < 0 || iy >= p.in_h) continue;
        // Through L1: the neighbours read it again.
        const auto v = load_lanes<N, ThroughL1>(x, ((int64_t(n) * p.in_h + iy) * p.in_w + ix) * p.channels + c);
#pragma unroll
        for (int lane = 0; lane < N; lane++) column.v[lane] += fy[ty] * v.v[lane];
      }
#pragma unroll
      for (int lane = 0; lane < N; lane++) sum.v[lane] += fx[tx] * column.v[lane];
    }
    then.apply(sum, int(pixel), int(c));
    store_lanes<N>(y, i, sum);
  }
};

template <typename T>
__device__ __forceinline__ void upfirdn2d(const T* x, T* y, const Upfirdn2dParams& p, const EpilogueParams& e) {
  dependent_launch();
  SHARED(float, fy, [kMostTaps]);
  SHARED(float, fx, [kMostTaps]);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int tap = 0; tap < kMostTaps; tap++) {
      fy[tap] = p.fy[tap];
      fx[tap] = p.fx[tap];
    }
  }
  __syncthreads();
  visit_elements<kLanes<T>>(p.count, p.channels % kLanes<T> == 0 && all_aligned16(x, e.bias, y),
                            Upfirdn2dPass<T>{x, y, fy, fx, p, Epilogue(e)});
}

extern "C" __global__ void upfirdn2d_f32(const float* x, float* y, Upfirdn2dParams p, EpilogueParams e) {
  upfirdn2d(x, y, p, e);
}
extern "C" __global__ void upfirdn2d_bf16(const bf16* x, bf16* y, Upfirdn2dParams p, EpilogueParams e) {
  upfirdn2d(x, y, p, e);
}
