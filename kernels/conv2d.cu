// The scaled convolution family as implicit matrix products: one trilinear form read from three sides.
//   T = sum b[n,o] g[n,p,o] w[o,t,i] a[n,i] x[n,q(p,t),i]        q(p,t) = p stride + t - padding
//   conv2d              y[n,p,o] = b[n,o] sum_{t,i} (a[n,i] x[n,q(p,t),i]) w[o,t,i]     rows (n,p), columns o, k = (t,i)
//   conv2d_transpose    z[n,q,i] = a[n,i] sum_{t,o} (b[n,o] g[n,p,o]) w[o,t,i]          rows (n,q), columns i, k = (t,o)
//   conv2d_weight_grad  v[o,t,i] = sum_{n,p} (b[n,o] g[n,p,o]) (a[n,i] x[n,q(p,t),i])   rows o, columns (t,i), k = (n,p)
// x [N,H,W,I], g and y [N,Ho,Wo,O], w [O,kh,kw,I]; the scales a [N,I] and b [N,O] may be null.
// The transpose visits the pixels of each residue class q mod stride (blockIdx.z) by themselves, with the taps that
// reach them: no product with an inserted zero is made. The weight gradient is cut into parts of k (blockIdx.z), which
// reduce.cu adds.
//
// Threads: one block per 64 x 64 outputs (128 x 16 in the narrow entries, for few channels); see gemm_tile.cuh.
// Cost: 2 N Ho Wo O kh kw I FLOP each. Per block and step of 16 in k: 4 * 16 * (64 + 64) bytes for 131072 FLOP, 16 FLOP
// per byte from L2: bound by the FMA units.
// Numerics: f32 throughout, k ascending within a part; scales are applied to operands as they are loaded and to sums
// as they are stored.
// Launched by src/ops/conv2d/cuda.rs.
#include "gemm_tile.cuh"

struct Conv2dParams {
  int32_t n;
  int32_t x_h, x_w, x_c;
  int32_t g_h, g_w, g_c;
  int32_t k_h, k_w;
  int32_t stride_y, stride_x, pad_y, pad_x;
  int32_t part;  // of k, in the weight gradient
};
static_assert(sizeof(Conv2dParams) == 56, "keep in step with src/ops/conv2d/cuda.rs");

// The index relation, once per direction and axis.
__device__ __forceinline__ int input_at(int output, int tap, int stride, int padding) {
  return output * stride + tap - padding;
}
// Of the taps that reach inputs of one residue class: the first, and how many there are.
struct Taps {
  int first, count;
};
__device__ __forceinline__ Taps taps_reaching(int residue, int kernel, int stride, int padding) {
  const int first = (residue + padding) % stride;
  return {first, first < kernel ? (kernel - first + stride - 1) / stride : 0};
}

__device__ __forceinline__ float scaled(float value, const float* scale, int64_t at) {
  return scale ? value * __ldg(scale + at) : value;
}

// ---- conv2d

// Rows (n, p), k = (t, i): a x.
struct InputPatches {
  static constexpr bool kAlongK = true;
  struct Row {
    int n, y, x;  // sample, position of tap (0, 0); n < 0 beyond the last row
  };
  struct Step {
    int y, x, i;
  };
  const float* x;
  const float* a;
  const Conv2dParams& p;

  __device__ __forceinline__ Row row(int r) const {
    const unsigned pixels = unsigned(p.g_h * p.g_w), n = unsigned(r) / pixels, pixel = unsigned(r) % pixels;
    if (int(n) >= p.n) return {-1, 0, 0};
    const int y = int(pixel / unsigned(p.g_w)), x = int(pixel % unsigned(p.g_w));
    return {int(n), input_at(y, 0, p.stride_y, p.pad_y), input_at(x, 0, p.stride_x, p.pad_x)};
  }
  __device__ __forceinline__ Step step(int k) const {
    const unsigned tap = unsigned(k) / unsigned(p.x_c);
    return {int(tap / unsigned(p.k_w)), int(tap % unsigned(p.k_w)), int(unsigned(k) % unsigned(p.x_c))};
  }
  __device__ __forceinline__ float load(const Row& r, const Step& s) const {
    const int y = r.y + s.y, x_at = r.x + s.x;
    if (r.n < 0 || y < 0 || y >= p.x_h || x_at < 0 || x_at >= p.x_w) return 0.0f;
    const float value = __ldg(x + ((int64_t(r.n) * p.x_h + y) * p.x_w + x_at) * p.x_c + s.i);
    return scaled(value, a, int64_t(r.n) * p.x_c + s.i);
  }
};

// Rows o, k = (t, i): the weight as it lies.
struct WeightRows {
  static constexpr bool kAlongK = true;
  using Row = int;
  using Step = int;
  const float* w;
  int rows, depth;

  __device__ __forceinline__ Row row(int o) const { return o < rows ? o : -1; }
  __device__ __forceinline__ Step step(int k) const { return k; }
  __device__ __forceinline__ float load(Row o, Step k) const {
    return o < 0 ? 0.0f : __ldg(w + int64_t(o) * depth + k);
  }
};

template <typename T>
__device__ __forceinline__ void conv2d(const float* x, const float* w, const float* a, const float* b, float* y,
                                       const Conv2dParams& p) {
  const int row = int(blockIdx.x) * T::kM, column = int(blockIdx.y) * T::kN;
  const int pixels = p.g_h * p.g_w, depth = p.k_h * p.k_w * p.x_c;
  T tile;
  tile.multiply(InputPatches{x, a, p}, WeightRows{w, p.g_c, depth}, row, column, 0, depth);
  tile.store(row, column, p.n * pixels, p.g_c, [&](int r, int o, float sum) {
    y[int64_t(r) * p.g_c + o] = scaled(sum, b, int64_t(r / pixels) * p.g_c + o);
  });
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_f32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<WideTile>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_narrow_f32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<NarrowTile>(x, w, a, b, y, p);
}

// ---- conv2d_transpose

// The pixels q of one residue class, and the taps that reach them.
struct ResidueClass {
  int y, x;  // residues
  int h, w;  // pixels of the class
  Taps taps_y, taps_x;

  __device__ __forceinline__ ResidueClass(int index, const Conv2dParams& p)
      : y(index / p.stride_x),
        x(index % p.stride_x),
        h(y < p.x_h ? (p.x_h - y + p.stride_y - 1) / p.stride_y : 0),
        w(x < p.x_w ? (p.x_w - x + p.stride_x - 1) / p.stride_x : 0),
        taps_y(taps_reaching(y, p.k_h, p.stride_y, p.pad_y)),
        taps_x(taps_reaching(x, p.k_w, p.stride_x, p.pad_x)) {}
};

// Rows (n, q of the class), k = (j, o) with taps t = first + j stride: b g.
struct OutputPatches {
  static constexpr bool kAlongK = true;
  struct Row {
    int n, y, x;  // sample, output position of the class's first tap; each further tap is one output earlier
  };
  struct Step {
    int y, x, o;
  };
  const float* g;
  const float* b;
  const Conv2dParams& p;
  const ResidueClass& c;

  __device__ __forceinline__ Row row(int r) const {
    const unsigned pixels = unsigned(c.h * c.w), n = unsigned(r) / pixels, pixel = unsigned(r) % pixels;
    if (int(n) >= p.n) return {-1, 0, 0};
    const int y = int(pixel / unsigned(c.w)), x = int(pixel % unsigned(c.w));
    return {int(n), (c.y + p.pad_y - c.taps_y.first) / p.stride_y + y,
            (c.x + p.pad_x - c.taps_x.first) / p.stride_x + x};
  }
  __device__ __forceinline__ Step step(int k) const {
    const unsigned tap = unsigned(k) / unsigned(p.g_c);
    return {int(tap / unsigned(c.taps_x.count)), int(tap % unsigned(c.taps_x.count)),
            int(unsigned(k) % unsigned(p.g_c))};
  }
  __device__ __forceinline__ float load(const Row& r, const Step& s) const {
    const int y = r.y - s.y, x = r.x - s.x;
    if (r.n < 0 || y < 0 || y >= p.g_h || x < 0 || x >= p.g_w) return 0.0f;
    const float value = __ldg(g + ((int64_t(r.n) * p.g_h + y) * p.g_w + x) * p.g_c + s.o);
    return scaled(value, b, int64_t(r.n) * p.g_c + s.o);
  }
};

// Rows i, k = (j, o): the weight of the class's taps.
struct WeightColumns {
  static constexpr bool kAlongK = false;
  using Row = int;
  using Step = int64_t;  // where (o, t) starts
  const float* w;
  const Conv2dParams& p;
  const ResidueClass& c;

  __device__ __forceinline__ Row row(int i) const { return i < p.x_c ? i : -1; }
  __device__ __forceinline__ Step step(int k) const {
    const unsigned tap = unsigned(k) / unsigned(p.g_c), o = unsigned(k) % unsigned(p.g_c);
    const int y = c.taps_y.first + int(tap / unsigned(c.taps_x.count)) * p.stride_y;
    const int x = c.taps_x.first + int(tap % unsigned(c.taps_x.count)) * p.stride_x;
    return ((int64_t(o) * p.k_h + y) * p.k_w + x) * p.x_c;
  }
  __device__ __forceinline__ float load(Row i, Step at) const { return i < 0 ? 0.0f : __ldg(w + at + i); }
};

template <typename T>
__device__ __forceinline__ void conv2d_transpose(const float* g, const float* w, const float* b, const float* a,
                                                 float* z, const Conv2dParams& p) {
  const ResidueClass c(int(blockIdx.z), p);
  const int row = int(blockIdx.x) * T::kM, column = int(blockIdx.y) * T::kN;
  const int pixels = c.h * c.w, rows = p.n * pixels, depth = c.taps_y.count * c.taps_x.count * p.g_c;
  if (row >= rows) return;  // the grid is that of the largest class
  T tile;
  tile.multiply(OutputPatches{g, b, p, c}, WeightColumns{w, p, c}, row, column, 0, depth);
  tile.store(row, column, rows, p.x_c, [&](int r, int i, float sum) {
    const int n = r / pixels, pixel = r % pixels;
    const int y = c.y + pixel / c.w * p.stride_y, x = c.x + pixel % c.w * p.stride_x;
    z[((int64_t(n) * p.x_h + y) * p.x_w + x) * p.x_c + i] = scaled(sum, a, int64_t(n) * p.x_c + i);
  });
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_transpose_f32(const float* g, const float* w, const float* b, const float* a, float* z, Conv2dParams p) {
  conv2d_transpose<WideTile>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_transpose_narrow_f32(const float* g, const float* w, const float* b, const float* a, float* z,
                                Conv2dParams p) {
  conv2d_transpose<NarrowTile>(g, w, b, a, z, p);
}

// ---- conv2d_weight_grad

// Rows o, k = (n, p): b g.
struct OutputChannels {
  static constexpr bool kAlongK = false;
  using Row = int;
  using Step = int;
  const float* g;
  const float* b;
  const Conv2dParams& p;

  __device__ __forceinline__ Row row(int o) const { return o < p.g_c ? o : -1; }
  __device__ __forceinline__ Step step(int k) const { return k; }
  __device__ __forceinline__ float load(Row o, Step k) const {
    if (o < 0) return 0.0f;
    const float value = __ldg(g + int64_t(k) * p.g_c + o);
    return scaled(value, b, int64_t(unsigned(k) / unsigned(p.g_h * p.g_w)) * p.g_c + o);
  }
};

// Rows (t, i), k = (n, p): a x.
struct InputColumns {
  static constexpr bool kAlongK = false;
  struct Row {
    int y, x, i;  // tap, channel; i < 0 beyond the last
  };
  struct Step {
    int n, y, x;  // sample, position of tap (0, 0)
  };
  const float* x;
  const float* a;
  const Conv2dParams& p;

  __device__ __forceinline__ Row row(int r) const {
    const int tap = r / p.x_c;
    if (tap >= p.k_h * p.k_w) return {0, 0, -1};
    return {tap / p.k_w, tap % p.k_w, r % p.x_c};
  }
  __device__ __forceinline__ Step step(int k) const {
    const unsigned row = unsigned(k) / unsigned(p.g_w);
    return {int(row / unsigned(p.g_h)), input_at(int(row % unsigned(p.g_h)), 0, p.stride_y, p.pad_y),
            input_at(int(unsigned(k) % unsigned(p.g_w)), 0, p.stride_x, p.pad_x)};
  }
  __device__ __forceinline__ float load(const Row& r, const Step& s) const {
    const int y = s.y + r.y, x_at = s.x + r.x;
    if (r.i < 0 || y < 0 || y >= p.x_h || x_at < 0 || x_at >= p.x_w) return 0.0f;
    const float value = __ldg(x + ((int64_t(s.n) * p.x_h + y) * p.x_w + x_at) * p.x_c + r.i);
    return scaled(value, a, int64_t(s.n) * p.x_c + r.i);
  }
};

extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_weight_grad_f32(const float* x, const float* g, const float* a, const float* b, float* v, Conv2dParams p) {
  const int row = int(blockIdx.x) * WideTile::kM, column = int(blockIdx.y) * WideTile::kN;
  const int columns = p.k_h * p.k_w * p.x_c;
  const int begin = int(blockIdx.z) * p.part, end = min(begin + p.part, p.n * p.g_h * p.g_w);
  WideTile tile;
  tile.multiply(OutputChannels{g, b, p}, InputColumns{x, a, p}, row, column, begin, end);
  float* part = v + int64_t(blockIdx.z) * p.g_c * columns;
  tile.store(row, column, p.g_c, columns, [&](int o, int c, float sum) { part[int64_t(o) * columns + c] = sum; });
}
