// The scaled convolution family as implicit matrix products: one trilinear form read from three sides.
//   T = gain sum b[n,o] g[n,p,o] w[o,t,i] a[n,i] x[n,q(p,t),i]        q(p,t) = p stride + t - padding
//   conv2d              y[n,p,o] = gain b[n,o] sum_{t,i} (a[n,i] x[n,q(p,t),i]) w[o,t,i]    rows (n,p), columns o, k = (t,i)
//   conv2d_transpose    z[n,q,i] = gain a[n,i] sum_{t,o} (b[n,o] g[n,p,o]) w[o,t,i]         rows (n,q), columns i, k = (t,o)
//   conv2d_weight_grad  v[o,t,i] = gain sum_{n,p} (b[n,o] g[n,p,o]) (a[n,i] x[n,q(p,t),i])  rows o, columns (t,i), k = (n,p)
//   conv2d_act          act(conv2d + (strength noise[p] + bias[o]))                    act(v) = v (v > 0 ? up : down)
//   conv2d_weight_grad_squared  s[o,t,i] = weight sum_j (gain sum_{n in group j,p} ... + rest[j,o,t,i])^2     as above
// x [N,H,W,I], g and y [N,Ho,Wo,O], w [O,kh,kw,I]; the scales a [N,I] and b [N,O], bias, noise and rest may be null.
// The transpose visits the pixels of each residue class q mod stride by themselves (blockIdx.z mod classes), with the
// taps that reach them: no product with an inserted zero is made. A long k is cut into parts (blockIdx.z, in the
// transpose divided by the number of classes): part q is v[q,o,t,i] and so on, and reduce.cu, or add_parts_act with an
// activation behind it, adds the parts in their order. The squared gradient is that of diagonal Fisher information: a
// sample's gradient, or that of a group of samples that a loss joins (group j of J: samples j, j + J, ...), is squared
// in registers, so that no gradient but their sum is ever stored; its parts are parts of the groups. rest is what else
// the loss owes to the weight (demodulation): what is squared is the whole.
//
// All tensors are f32, but in the _stored_bf16 entries: there x, g, y, z and w are bf16 (w f32 in the narrow ones).
// Parts, weight gradients, scales, bias, noise and rest are f32 everywhere.
//
// Threads: one block per tile of outputs. _f32 entries: 64 x 64 (128 x 16 in the narrow ones, for few channels), 256
// threads, gemm_tile.cuh. _tf32, _tf32x3 and _bf16 entries (operands rounded to that format) and _stored_bf16 entries:
// 128 x 128, 256 threads; the small ones 64 x 64, 128 threads; mma_tile.cuh. add_parts_act: one thread per element,
// grid-stride.
// Cost: 2 N Ho Wo O kh kw I FLOP each. Per block and step of 16 in k, 4 * 16 * (64 + 64) bytes for 131072 FLOP, 16 FLOP
// per byte from L2 (32 in tiles of 128 x 128; twice that of stored bf16): bound by the FMA units or tensor cores.
// add_parts_act: 4 (parts + 1) bytes per element, in bf16 2 fewer.
// Numerics: f32 sums, k ascending within a part; scales are applied to operands as they are loaded and to sums as they
// are stored. What the tensor core entries round is in mma_tile.cuh; a result in bf16 is rounded once, when stored.
// Launched by src/ops/conv2d/cuda.rs.
#include "conv2d.cuh"
#include "gemm_tile.cuh"
#include "mma_tile.cuh"

// The share of part `part` of a sum over `depth`.
struct Share {
  int begin, end;
};
__device__ __forceinline__ Share share_of(int part, int length, int depth) {
  if (length <= 0) return {0, depth};
  return {min(part * length, depth), min((part + 1) * length, depth)};
}

// Neighbours in memory are one vector of 16 bytes where channels and parts are multiples of their number and addresses
// of sixteen.
template <typename T, typename... Pointers>
__device__ __forceinline__ bool in_vectors(int channels, int other_channels, int part, const T* first,
                                           const Pointers*... others) {
  return channels % kLanes<T> == 0 && other_channels % kLanes<T> == 0 && part % kLanes<T> == 0 &&
         all_aligned16(first, others...);
}

// Multiplies on either kind of tile.
template <typename Tile, typename A, typename B>
__device__ __forceinline__ void multiply(Tile& tile, const A& a, const B& b, int row, int column, Share k,
                                         bool vectors) {
  if constexpr (requires { Tile::kSharedBytes; })
    tile.multiply(a, b, row, column, k.begin, k.end, vectors);
  else
    tile.multiply(a, b, row, column, k.begin, k.end);
}

// ---- conv2d

// Rows (n, p), k = (t, i): a x.
template <typename T>
struct InputPatches {
  using Element = T;
  static constexpr bool kAlongK = true;
  struct Row {
    int n, y, x;  // sample, position of tap (0, 0); n < 0 beyond the last row
  };
  struct Step {
    int y, x, i;
  };
  const T* data;
  const float* scale;
  const Conv2dParams& p;
  Divisor channels, taps_x;

  __device__ __forceinline__ InputPatches(const T* x, const float* a, const Conv2dParams& p)
      : data(x), scale(a), p(p), channels(p.x_c), taps_x(p.k_w) {}
  __device__ __forceinline__ Row row(int r) const {
    const unsigned pixels = unsigned(p.g_h * p.g_w), n = unsigned(r) / pixels, pixel = unsigned(r) % pixels;
    if (int(n) >= p.n) return {-1, 0, 0};
    const int y = int(pixel / unsigned(p.g_w)), x = int(pixel % unsigned(p.g_w));
    return {int(n), input_at(y, 0, p.stride_y, p.pad_y), input_at(x, 0, p.stride_x, p.pad_x)};
  }
  __device__ __forceinline__ Step step(int k) const {
    const int tap = channels.quotient(k), y = taps_x.quotient(tap);
    return {y, tap - y * p.k_w, k - tap * p.x_c};
  }
  __device__ __forceinline__ int at(const Row& r, const Step& s) const {
    const int y = r.y + s.y, x = r.x + s.x;
    if (r.n < 0 || y < 0 || y >= p.x_h || x < 0 || x >= p.x_w) return -1;
    return ((r.n * p.x_h + y) * p.x_w + x) * p.x_c + s.i;
  }
  __device__ __forceinline__ int scale_at(const Row& r, const Step& s) const { return r.n * p.x_c + s.i; }
};

// Rows o, k = (t, i): the weight as it lies.
template <typename T>
struct WeightRows {
  using Element = T;
  static constexpr bool kAlongK = true;
  static constexpr const float* scale = nullptr;
  using Row = int;
  using Step = int;
  const T* data;
  int rows, depth;

  __device__ __forceinline__ Row row(int o) const { return o < rows ? o : -1; }
  __device__ __forceinline__ Step step(int k) const { return k; }
  __device__ __forceinline__ int at(Row o, Step k) const { return o < 0 ? -1 : o * depth + k; }
  __device__ __forceinline__ int scale_at(Row, Step) const { return 0; }
};

// The sums of the block's tile.
template <typename Tile, typename X, typename W>
__device__ __forceinline__ void conv2d_sums(Tile& tile, const X* x, const W* w, const float* a, const Conv2dParams& p,
                                            int part) {
  const int depth = p.k_h * p.k_w * p.x_c;
  multiply(tile, InputPatches<X>(x, a, p), WeightRows<W>{w, p.g_c, depth}, int(blockIdx.x) * Tile::kM,
           int(blockIdx.y) * Tile::kN, share_of(part, p.part, depth), in_vectors(p.x_c, 0, p.part, x, w, a));
}

template <typename Tile, typename Output>
__device__ __forceinline__ void store_tile(const Tile& tile, const Output& output, int rows, int columns) {
  tile.store(output, int(blockIdx.x) * Tile::kM, int(blockIdx.y) * Tile::kN, rows, columns);
}

// Calls store with where part `part` of `count` results goes: whole results have the type T, parts are f32.
template <typename T, typename Store>
__device__ __forceinline__ void store_part(void* results, int64_t count, int part, const Conv2dParams& p, Store store) {
  if constexpr (sizeof(T) < sizeof(float))
    if (p.part == 0) return store(static_cast<T*>(results));
  store(static_cast<float*>(results) + part * count);
}

template <typename Tile, typename X, typename W>
__device__ __forceinline__ void conv2d(const X* x, const W* w, const float* a, const float* b, void* y,
                                       const Conv2dParams& p) {
  dependent_launch();
  const int part = int(blockIdx.z), pixels = p.g_h * p.g_w;
  Tile tile;
  conv2d_sums(tile, x, w, a, p, part);
  store_part<X>(y, int64_t(p.n) * pixels * p.g_c, part, p, [&]<typename Y>(Y* to) {
    store_tile(tile, ConvolutionOutput<Y>{to, b, pixels, p.g_c, p.gain}, p.n * pixels, p.g_c);
  });
}

template <typename Tile, typename X, typename W>
__device__ __forceinline__ void conv2d_act(const X* x, const W* w, const float* a, const float* b, X* y,
                                           const Conv2dParams& p, const EpilogueParams& e) {
  dependent_launch();
  const int pixels = p.g_h * p.g_w;
  Tile tile;
  conv2d_sums(tile, x, w, a, p, 0);
  store_tile(tile, ActivatedOutput<X>{y, b, pixels, p.g_c, p.gain, Epilogue(e)}, p.n * pixels, p.g_c);
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_f32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<WideTile>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_narrow_f32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<NarrowTile>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32>::kThreads, LargeMmaTile<Math::Tf32>::kBlocks)
    conv2d_tf32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<LargeMmaTile<Math::Tf32>>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32>::kThreads, SmallMmaTile<Math::Tf32>::kBlocks)
    conv2d_small_tf32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<SmallMmaTile<Math::Tf32>>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32x3>::kThreads, LargeMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_tf32x3(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<LargeMmaTile<Math::Tf32x3>>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32x3>::kThreads, SmallMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_small_tf32x3(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<SmallMmaTile<Math::Tf32x3>>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_bf16(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<LargeMmaTile<Math::Bf16>>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_small_bf16(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p) {
  conv2d<SmallMmaTile<Math::Bf16>>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_narrow_stored_bf16(const bf16* x, const float* w, const float* a, const float* b, void* y, Conv2dParams p) {
  conv2d<NarrowTile>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_stored_bf16(const bf16* x, const bf16* w, const float* a, const float* b, void* y, Conv2dParams p) {
  conv2d<LargeMmaTile<Math::Bf16>>(x, w, a, b, y, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_small_stored_bf16(const bf16* x, const bf16* w, const float* a, const float* b, void* y, Conv2dParams p) {
  conv2d<SmallMmaTile<Math::Bf16>>(x, w, a, b, y, p);
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_act_f32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                   EpilogueParams e) {
  conv2d_act<WideTile>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_act_narrow_f32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                          EpilogueParams e) {
  conv2d_act<NarrowTile>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32>::kThreads, LargeMmaTile<Math::Tf32>::kBlocks)
    conv2d_act_tf32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                    EpilogueParams e) {
  conv2d_act<LargeMmaTile<Math::Tf32>>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32>::kThreads, SmallMmaTile<Math::Tf32>::kBlocks)
    conv2d_act_small_tf32(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                          EpilogueParams e) {
  conv2d_act<SmallMmaTile<Math::Tf32>>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32x3>::kThreads, LargeMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_act_tf32x3(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                      EpilogueParams e) {
  conv2d_act<LargeMmaTile<Math::Tf32x3>>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32x3>::kThreads, SmallMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_act_small_tf32x3(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                            EpilogueParams e) {
  conv2d_act<SmallMmaTile<Math::Tf32x3>>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_act_bf16(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                    EpilogueParams e) {
  conv2d_act<LargeMmaTile<Math::Bf16>>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_act_small_bf16(const float* x, const float* w, const float* a, const float* b, float* y, Conv2dParams p,
                          EpilogueParams e) {
  conv2d_act<SmallMmaTile<Math::Bf16>>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_act_narrow_stored_bf16(const bf16* x, const float* w, const float* a, const float* b, bf16* y,
                                  Conv2dParams p, EpilogueParams e) {
  conv2d_act<NarrowTile>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_act_stored_bf16(const bf16* x, const bf16* w, const float* a, const float* b, bf16* y, Conv2dParams p,
                           EpilogueParams e) {
  conv2d_act<LargeMmaTile<Math::Bf16>>(x, w, a, b, y, p, e);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_act_small_stored_bf16(const bf16* x, const bf16* w, const float* a, const float* b, bf16* y, Conv2dParams p,
                                 EpilogueParams e) {
  conv2d_act<SmallMmaTile<Math::Bf16>>(x, w, a, b, y, p, e);
}

// y = act(the sum of the parts), for a convolution cut into parts; y has the shape of one part, `count` elements.
template <typename T>
__device__ __forceinline__ void add_parts_act(const float* sums, T* y, int count, int channels, int parts,
                                              const EpilogueParams& e) {
  dependent_launch();
  const Epilogue act(e);
  for (int64_t i = global_thread(); i < count; i += grid_threads()) {
    float sum = 0.0f;
    for (int part = 0; part < parts; part++) sum += __ldcg(sums + int64_t(part) * count + i);
    const int pixel = int(i) / channels;
    store_one(y + i, act.value(sum, act.noise(pixel), int(i) - pixel * channels));
  }
}

extern "C" __global__ void conv2d_add_parts_act_f32(const float* sums, float* y, int count, int channels, int parts,
                                                    EpilogueParams e) {
  add_parts_act(sums, y, count, channels, parts, e);
}
extern "C" __global__ void conv2d_add_parts_act_bf16(const float* sums, bf16* y, int count, int channels, int parts,
                                                     EpilogueParams e) {
  add_parts_act(sums, y, count, channels, parts, e);
}

// ---- conv2d_transpose

// Rows (n, q of the class), k = (j, o) with taps t = first + j stride: b g.
template <typename T>
struct OutputPatches {
  using Element = T;
  static constexpr bool kAlongK = true;
  struct Row {
    int n, y, x;  // sample, output position of the class's first tap; each further tap is one output earlier
  };
  struct Step {
    int y, x, o;
  };
  const T* data;
  const float* scale;
  const Conv2dParams& p;
  const ResidueClass& c;
  Divisor channels, taps_x;

  __device__ __forceinline__ OutputPatches(const T* g, const float* b, const Conv2dParams& p, const ResidueClass& c)
      : data(g), scale(b), p(p), c(c), channels(p.g_c), taps_x(c.taps_x.count) {}
  __device__ __forceinline__ Row row(int r) const {
    const unsigned pixels = unsigned(c.h * c.w), n = unsigned(r) / pixels, pixel = unsigned(r) % pixels;
    if (int(n) >= p.n) return {-1, 0, 0};
    const int y = int(pixel / unsigned(c.w)), x = int(pixel % unsigned(c.w));
    return {int(n), (c.y + p.pad_y - c.taps_y.first) / p.stride_y + y,
            (c.x + p.pad_x - c.taps_x.first) / p.stride_x + x};
  }
  __device__ __forceinline__ Step step(int k) const {
    const int tap = channels.quotient(k), y = taps_x.quotient(tap);
    return {y, tap - y * c.taps_x.count, k - tap * p.g_c};
  }
  __device__ __forceinline__ int at(const Row& r, const Step& s) const {
    const int y = r.y - s.y, x = r.x - s.x;
    if (r.n < 0 || y < 0 || y >= p.g_h || x < 0 || x >= p.g_w) return -1;
    return ((r.n * p.g_h + y) * p.g_w + x) * p.g_c + s.o;
  }
  __device__ __forceinline__ int scale_at(const Row& r, const Step& s) const { return r.n * p.g_c + s.o; }
};

// Rows i, k = (j, o): the weight of the class's taps.
template <typename T>
struct WeightColumns {
  using Element = T;
  static constexpr bool kAlongK = false;
  static constexpr const float* scale = nullptr;
  using Row = int;
  using Step = int;  // where (o, t) starts
  const T* data;
  const Conv2dParams& p;
  const ResidueClass& c;
  Divisor channels, taps_x;

  __device__ __forceinline__ WeightColumns(const T* w, const Conv2dParams& p, const ResidueClass& c)
      : data(w), p(p), c(c), channels(p.g_c), taps_x(c.taps_x.count) {}
  __device__ __forceinline__ Row row(int i) const { return i < p.x_c ? i : -1; }
  __device__ __forceinline__ Step step(int k) const {
    const int tap = channels.quotient(k), o = k - tap * p.g_c, row = taps_x.quotient(tap);
    const int y = c.taps_y.first + row * p.stride_y;
    const int x = c.taps_x.first + (tap - row * c.taps_x.count) * p.stride_x;
    return ((o * p.k_h + y) * p.k_w + x) * p.x_c;
  }
  __device__ __forceinline__ int at(Row i, Step start) const { return i < 0 ? -1 : start + i; }
  __device__ __forceinline__ int scale_at(Row, Step) const { return 0; }
};

template <typename Tile, typename G, typename W>
__device__ __forceinline__ void conv2d_transpose(const G* g, const W* w, const float* b, const float* a, void* z,
                                                 const Conv2dParams& p) {
  dependent_launch();
  const int classes = p.stride_y * p.stride_x, part = int(blockIdx.z) / classes;
  const ResidueClass c(int(blockIdx.z) % classes, p);
  const int row = int(blockIdx.x) * Tile::kM, column = int(blockIdx.y) * Tile::kN;
  const int rows = p.n * c.h * c.w, depth = c.taps_y.count * c.taps_x.count * p.g_c;
  if (row >= rows) return;  // the grid is that of the largest class
  Tile tile;
  multiply(tile, OutputPatches<G>(g, b, p, c), WeightColumns<W>(w, p, c), row, column, share_of(part, p.part, depth),
           in_vectors(p.g_c, p.x_c, p.part, g, w, b));
  store_part<G>(z, int64_t(p.n) * p.x_h * p.x_w * p.x_c, part, p,
                [&]<typename Z>(Z* to) { store_tile(tile, TransposeOutput<Z>{to, a, p, c}, rows, p.x_c); });
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
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32>::kThreads, LargeMmaTile<Math::Tf32>::kBlocks)
    conv2d_transpose_tf32(const float* g, const float* w, const float* b, const float* a, float* z, Conv2dParams p) {
  conv2d_transpose<LargeMmaTile<Math::Tf32>>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32>::kThreads, SmallMmaTile<Math::Tf32>::kBlocks)
    conv2d_transpose_small_tf32(const float* g, const float* w, const float* b, const float* a, float* z,
                                Conv2dParams p) {
  conv2d_transpose<SmallMmaTile<Math::Tf32>>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32x3>::kThreads, LargeMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_transpose_tf32x3(const float* g, const float* w, const float* b, const float* a, float* z, Conv2dParams p) {
  conv2d_transpose<LargeMmaTile<Math::Tf32x3>>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32x3>::kThreads, SmallMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_transpose_small_tf32x3(const float* g, const float* w, const float* b, const float* a, float* z,
                                  Conv2dParams p) {
  conv2d_transpose<SmallMmaTile<Math::Tf32x3>>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_transpose_bf16(const float* g, const float* w, const float* b, const float* a, float* z, Conv2dParams p) {
  conv2d_transpose<LargeMmaTile<Math::Bf16>>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_transpose_small_bf16(const float* g, const float* w, const float* b, const float* a, float* z,
                                Conv2dParams p) {
  conv2d_transpose<SmallMmaTile<Math::Bf16>>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_transpose_narrow_stored_bf16(const bf16* g, const float* w, const float* b, const float* a, void* z,
                                        Conv2dParams p) {
  conv2d_transpose<NarrowTile>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_transpose_stored_bf16(const bf16* g, const bf16* w, const float* b, const float* a, void* z,
                                 Conv2dParams p) {
  conv2d_transpose<LargeMmaTile<Math::Bf16>>(g, w, b, a, z, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_transpose_small_stored_bf16(const bf16* g, const bf16* w, const float* b, const float* a, void* z,
                                       Conv2dParams p) {
  conv2d_transpose<SmallMmaTile<Math::Bf16>>(g, w, b, a, z, p);
}

// ---- conv2d_weight_grad

// Which samples k runs over: first, first + apart, ...
struct Samples {
  int first, apart;
};

// Rows o, k = (n, p): b g.
template <typename T>
struct OutputChannels {
  using Element = T;
  static constexpr bool kAlongK = false;
  using Row = int;
  struct Step {
    int n, pixel;
  };
  const T* data;
  const float* scale;
  const Conv2dParams& p;
  Samples samples;
  Divisor pixels;

  __device__ __forceinline__ OutputChannels(const T* g, const float* b, const Conv2dParams& p, Samples samples)
      : data(g), scale(b), p(p), samples(samples), pixels(p.g_h * p.g_w) {}
  __device__ __forceinline__ Row row(int o) const { return o < p.g_c ? o : -1; }
  __device__ __forceinline__ Step step(int k) const {
    const int index = pixels.quotient(k);
    return {samples.first + index * samples.apart, k - index * int(pixels.divisor)};
  }
  __device__ __forceinline__ int at(Row o, const Step& s) const {
    return o < 0 ? -1 : (s.n * int(pixels.divisor) + s.pixel) * p.g_c + o;
  }
  __device__ __forceinline__ int scale_at(Row o, const Step& s) const { return s.n * p.g_c + o; }
};

// Rows (t, i), k = (n, p): a x.
template <typename T>
struct InputColumns {
  using Element = T;
  static constexpr bool kAlongK = false;
  struct Row {
    int y, x, i;  // tap, channel; i < 0 beyond the last
  };
  struct Step {
    int n, y, x;  // sample, position of tap (0, 0)
  };
  const T* data;
  const float* scale;
  const Conv2dParams& p;
  Samples samples;
  Divisor pixels, width;

  __device__ __forceinline__ InputColumns(const T* x, const float* a, const Conv2dParams& p, Samples samples)
      : data(x), scale(a), p(p), samples(samples), pixels(p.g_h * p.g_w), width(p.g_w) {}
  __device__ __forceinline__ Row row(int r) const {
    const int tap = r / p.x_c;
    if (tap >= p.k_h * p.k_w) return {0, 0, -1};
    return {tap / p.k_w, tap % p.k_w, r % p.x_c};
  }
  __device__ __forceinline__ Step step(int k) const {
    const int index = pixels.quotient(k), pixel = k - index * int(pixels.divisor), y = width.quotient(pixel);
    return {samples.first + index * samples.apart, input_at(y, 0, p.stride_y, p.pad_y),
            input_at(pixel - y * p.g_w, 0, p.stride_x, p.pad_x)};
  }
  __device__ __forceinline__ int at(const Row& r, const Step& s) const {
    const int y = s.y + r.y, x = s.x + r.x;
    if (r.i < 0 || y < 0 || y >= p.x_h || x < 0 || x >= p.x_w) return -1;
    return ((s.n * p.x_h + y) * p.x_w + x) * p.x_c + r.i;
  }
  __device__ __forceinline__ int scale_at(const Row& r, const Step& s) const { return s.n * p.x_c + r.i; }
};

template <typename Tile, typename T>
__device__ __forceinline__ void conv2d_weight_grad(const T* x, const T* g, const float* a, const float* b, float* v,
                                                   const Conv2dParams& p) {
  dependent_launch();
  const int row = int(blockIdx.x) * Tile::kM, column = int(blockIdx.y) * Tile::kN;
  const int columns = p.k_h * p.k_w * p.x_c, part = int(blockIdx.z);
  constexpr Samples kAll{0, 1};
  Tile tile;
  // k is no run of neighbours in memory: parts need not be multiples of anything.
  multiply(tile, OutputChannels<T>(g, b, p, kAll), InputColumns<T>(x, a, p, kAll), row, column,
           share_of(part, p.part, p.n * p.g_h * p.g_w), in_vectors(p.g_c, p.x_c, 0, x, g, a, b));
  tile.store(WeightOutput{v + int64_t(part) * p.g_c * columns, columns, p.gain}, row, column, p.g_c, columns);
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_weight_grad_f32(const float* x, const float* g, const float* a, const float* b, float* v, Conv2dParams p) {
  conv2d_weight_grad<WideTile>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32>::kThreads, LargeMmaTile<Math::Tf32>::kBlocks)
    conv2d_weight_grad_tf32(const float* x, const float* g, const float* a, const float* b, float* v, Conv2dParams p) {
  conv2d_weight_grad<LargeMmaTile<Math::Tf32>>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32>::kThreads, SmallMmaTile<Math::Tf32>::kBlocks)
    conv2d_weight_grad_small_tf32(const float* x, const float* g, const float* a, const float* b, float* v,
                                  Conv2dParams p) {
  conv2d_weight_grad<SmallMmaTile<Math::Tf32>>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Tf32x3>::kThreads, LargeMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_weight_grad_tf32x3(const float* x, const float* g, const float* a, const float* b, float* v,
                              Conv2dParams p) {
  conv2d_weight_grad<LargeMmaTile<Math::Tf32x3>>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32x3>::kThreads, SmallMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_weight_grad_small_tf32x3(const float* x, const float* g, const float* a, const float* b, float* v,
                                    Conv2dParams p) {
  conv2d_weight_grad<SmallMmaTile<Math::Tf32x3>>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_weight_grad_bf16(const float* x, const float* g, const float* a, const float* b, float* v, Conv2dParams p) {
  conv2d_weight_grad<LargeMmaTile<Math::Bf16>>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_weight_grad_small_bf16(const float* x, const float* g, const float* a, const float* b, float* v,
                                  Conv2dParams p) {
  conv2d_weight_grad<SmallMmaTile<Math::Bf16>>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(LargeMmaTile<Math::Bf16>::kThreads, LargeMmaTile<Math::Bf16>::kBlocks)
    conv2d_weight_grad_stored_bf16(const bf16* x, const bf16* g, const float* a, const float* b, float* v,
                                   Conv2dParams p) {
  conv2d_weight_grad<LargeMmaTile<Math::Bf16>>(x, g, a, b, v, p);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_weight_grad_small_stored_bf16(const bf16* x, const bf16* g, const float* a, const float* b, float* v,
                                         Conv2dParams p) {
  conv2d_weight_grad<SmallMmaTile<Math::Bf16>>(x, g, a, b, v, p);
}

// ---- conv2d_weight_grad_squared

struct Conv2dSquaredParams {
  Conv2dParams conv;
  int32_t groups;  // J; the batch is J times the members of a group
  int32_t part;    // of the groups
  float weight;
  int32_t accumulate;  // whether to add to what is there; with one part only
};
static_assert(sizeof(Conv2dSquaredParams) == 76, "keep in step with src/ops/conv2d/cuda.rs");

struct SquaredOutput {
  struct Row {
    int64_t at;
  };
  float* data;
  int columns;
  float weight;
  bool accumulate;

  __device__ __forceinline__ Row row(int o) const { return {int64_t(o) * columns}; }
  __device__ __forceinline__ float value(const Row& r, int c, float sum) const {
    return weight * sum + (accumulate ? data[r.at + c] : 0.0f);
  }
};

__device__ __forceinline__ void add_squares(float& square, float sum) { square = fmaf(sum, sum, square); }
template <typename T, int kCount>
__device__ __forceinline__ void add_squares(T (&squares)[kCount], const T (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) add_squares(squares[i], sums[i]);
}

template <typename Tile, typename T>
__device__ __forceinline__ void conv2d_weight_grad_squared(const T* x, const T* g, const float* a, const float* b,
                                                           const float* rest, float* s, const Conv2dSquaredParams& q) {
  dependent_launch();
  const Conv2dParams& p = q.conv;
  const int row = int(blockIdx.x) * Tile::kM, column = int(blockIdx.y) * Tile::kN;
  const int columns = p.k_h * p.k_w * p.x_c, part = int(blockIdx.z);
  const Share groups = share_of(part, q.part, q.groups), k{0, p.n / max(q.groups, 1) * p.g_h * p.g_w};
  const bool vectors = in_vectors(p.g_c, p.x_c, 0, x, g, a, b);
  Tile squares, tile;
  clear(squares.sums);
  for (int group = groups.begin; group < groups.end; group++) {
    const Samples members{group, q.groups};
    multiply(tile, OutputChannels<T>(g, b, p, members), InputColumns<T>(x, a, p, members), row, column, k, vectors);
    const float* own = rest ? rest + int64_t(group) * p.g_c * columns : nullptr;
    tile.for_each(row, column, p.g_c, columns, [&](int r, int c, float& sum) {
      sum = p.gain * sum + (own ? __ldcg(own + int64_t(r) * columns + c) : 0.0f);
    });
    add_squares(squares.sums, tile.sums);
  }
  const SquaredOutput output{s + int64_t(part) * p.g_c * columns, columns, q.weight, q.accumulate != 0};
  squares.store(output, row, column, p.g_c, columns);
}

extern "C" __global__ void __launch_bounds__(kTileThreads)
    conv2d_weight_grad_squared_f32(const float* x, const float* g, const float* a, const float* b, const float* rest,
                                   float* s, Conv2dSquaredParams q) {
  conv2d_weight_grad_squared<WideTile>(x, g, a, b, rest, s, q);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32>::kThreads, SmallMmaTile<Math::Tf32>::kBlocks)
    conv2d_weight_grad_squared_tf32(const float* x, const float* g, const float* a, const float* b, const float* rest,
                                    float* s, Conv2dSquaredParams q) {
  conv2d_weight_grad_squared<SmallMmaTile<Math::Tf32>>(x, g, a, b, rest, s, q);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Tf32x3>::kThreads, SmallMmaTile<Math::Tf32x3>::kBlocks)
    conv2d_weight_grad_squared_tf32x3(const float* x, const float* g, const float* a, const float* b, const float* rest,
                                      float* s, Conv2dSquaredParams q) {
  conv2d_weight_grad_squared<SmallMmaTile<Math::Tf32x3>>(x, g, a, b, rest, s, q);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_weight_grad_squared_bf16(const float* x, const float* g, const float* a, const float* b, const float* rest,
                                    float* s, Conv2dSquaredParams q) {
  conv2d_weight_grad_squared<SmallMmaTile<Math::Bf16>>(x, g, a, b, rest, s, q);
}
extern "C" __global__ void __launch_bounds__(SmallMmaTile<Math::Bf16>::kThreads, SmallMmaTile<Math::Bf16>::kBlocks)
    conv2d_weight_grad_squared_stored_bf16(const bf16* x, const bf16* g, const float* a, const float* b,
                                           const float* rest, float* s, Conv2dSquaredParams q) {
  conv2d_weight_grad_squared<SmallMmaTile<Math::Bf16>>(x, g, a, b, rest, s, q);
}
