// conv2d.cu's products in bf16 by Hopper's own instructions: TMA loads, an mbarrier pipeline, wgmma.
//   conv2d_sm90              y = act(gain b (x * w) + (strength noise + bias)) tiles of 128 pixels p by channels o
//   conv2d_transpose_sm90    z = gain a (g transposed-* w)                     128 pixels q of a residue class by channels i
//   conv2d_weight_grad_sm90  v = gain sum_{n,p} g x, in parts of the pixels    128 channels o by channels i of one tap
// Operands are bf16, [N,H,W,C] and [O,kh,kw,I] with C, I and O multiples of 8 (TMA's rows of 16 bytes), already
// multiplied by their scales; y and z are f32, in the _stored_bf16 entries bf16; v is f32.
//
// A tile's pixels are a box of w x h x n pixels (Conv2dBoxParams: 128 in all; in the weight gradient, where pixels are
// k, 64). A step of 64 channels of one tap is that box moved by the tap: TMA fills what lies outside the image with
// zeros, so neither halo nor padding is ever stored, and a stride of the convolution is the tensor map's element
// stride. Boxes that reach beyond the last row, column or sample bring zeros, and their outputs are not stored.
// Neighbouring steps read the same pixels again from L2.
//
// Tensor maps (dimensions from the innermost; boxes in elements that are loaded; 128-byte swizzle, zero fill):
//   conv2d_sm90              x [C,W,H,N]: 64 x w x h x n, element strides (1, stride_x, stride_y, 1)
//                            w [kh kw I, O]: 64 x kColumns
//   conv2d_transpose_sm90    g [O,Wo,Ho,N]: 64 x w x h x n        w [I, kh kw, O]: 64 x 1 x 64
//   conv2d_weight_grad_sm90  g [O,Wo,Ho,N]: 64 x w x h x n        x as in conv2d_sm90, with its box of 64 pixels
//
// Threads: 384, one warpgroup that loads (one thread of it) and two that multiply, 64 rows by kColumns each, in 128
// (64) accumulator registers per thread. Blocks are persistent: block b has tiles b, b + gridDim.x, ...; column tiles
// of the same pixels are neighbours, so that blocks that run together share them in L2.
// Shared memory: sizeof(Stages<kColumns>), dynamic: 197632 bytes for 256 columns, 132096 for 128; four stages.
// Cost: 2 N Ho Wo O kh kw I FLOP; per step 128 (128 + kColumns) bytes from L2 for 2 * 64 * 128 kColumns FLOP: 85 FLOP
// per byte with 256 columns, bound by the tensor cores. Results leave as 4 bytes each, or 2.
// Numerics: products of bf16 are exact, sums are f32 in the tensor core, taps ascending, then channels (weight
// gradient: boxes ascending within a part). Against the exact sum of the absolute products of the operands, the error
// is that of an f32 sum; a result in bf16 is rounded once, when stored.
// Launched by src/ops/conv2d/cuda/hopper.rs, on chips of compute capability 9.0.
#include "conv2d.cuh"

struct Conv2dBoxParams {
  int32_t w, h, n;  // pixels of a box
  int32_t part;     // boxes per part, in the weight gradient; 0: all
};
static_assert(sizeof(Conv2dBoxParams) == 16, "keep in step with src/ops/conv2d/cuda/hopper.rs");

constexpr int kWarpgroup = 128;
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kRows = 128;  // of a tile, half of them per warpgroup
constexpr int kDepth = 64;  // of a step
constexpr int kStages = 4;

template <int kColumns>
struct __align__(1024) Stages {
  bf16 a[kStages][kRows * kDepth];
  bf16 b[kStages][kColumns * kDepth];
  uint64_t full[kStages], empty[kStages];
};

#if RECANT_HAS_SM90A

constexpr int kBlock = 64 * kDepth;  // elements that 64 rows, or 64 columns, of a step have

// ---- which pixels a tile has

struct Corner {
  int x, y, n;
};
// The boxes that cover `n` images of w x h pixels.
struct Boxes {
  const Conv2dBoxParams& box;
  int w, h, n;
  int across, down, deep;

  __device__ __forceinline__ Boxes(const Conv2dBoxParams& box, int w, int h, int n)
      : box(box),
        w(w),
        h(h),
        n(n),
        across((w + box.w - 1) / box.w),
        down((h + box.h - 1) / box.h),
        deep((n + box.n - 1) / box.n) {}
  __device__ __forceinline__ int count() const { return across * down * deep; }
  __device__ __forceinline__ Corner corner(int index) const {
    return {index % across * box.w, index / across % down * box.h, index / across / down * box.n};
  }
  // The number of a box's pixel among all pixels, [n][h][w]; negative outside.
  __device__ __forceinline__ int pixel(const Corner& corner, int r) const {
    const int x = corner.x + r % box.w, y = corner.y + r / box.w % box.h, sample = corner.n + r / box.w / box.h;
    return x < w && y < h && sample < n ? (sample * h + y) * w + x : -1;
  }
};

__device__ __forceinline__ int steps_of(int channels) { return (channels + kDepth - 1) / kDepth; }

// ---- the three products: tiles, what a step loads, where sums go

template <int kColumns, typename Y>
struct ForwardPlan {
  static constexpr int kTransposeA = 0, kTransposeB = 0;
  struct Tile {
    Corner corner;
    int column;
  };
  const CUtensorMap& x;
  const CUtensorMap& w;
  const Conv2dParams& p;
  ActivatedOutput<Y> output;
  Boxes boxes;
  int column_tiles = (p.g_c + kColumns - 1) / kColumns;

  __device__ __forceinline__ int tiles() const { return boxes.count() * column_tiles; }
  __device__ __forceinline__ Tile tile(int index) const {
    return {boxes.corner(index / column_tiles), index % column_tiles * kColumns};
  }
  __device__ __forceinline__ int steps(const Tile&) const { return p.k_h * p.k_w * steps_of(p.x_c); }
  __device__ __forceinline__ void load(const Tile& t, int step, bf16* a, bf16* b, uint64_t* full) const {
    const int tap = step / steps_of(p.x_c), i = step % steps_of(p.x_c) * kDepth;
    ptx::tma_load_4d(a, &x, i, input_at(t.corner.x, tap % p.k_w, p.stride_x, p.pad_x),
                     input_at(t.corner.y, tap / p.k_w, p.stride_y, p.pad_y), t.corner.n, full);
    ptx::tma_load_2d(b, &w, tap * p.x_c + i, t.column, full);
  }
  template <typename Store>
  __device__ __forceinline__ void store(const Tile& t, Store store) const {
    store(output, [&](int r) { return boxes.pixel(t.corner, r); }, t.column, p.g_c);
  }
};

template <int kColumns, typename Z>
struct TransposePlan {
  static constexpr int kTransposeA = 0, kTransposeB = 1;
  struct Tile {
    int class_index;
    Corner corner;
    int column;
    Taps taps_y, taps_x;
    int x, y;  // in g, of the first tap for the box's first pixel; each further tap is one pixel earlier
  };
  const CUtensorMap& g;
  const CUtensorMap& w;
  const Conv2dParams& p;
  const float* a;
  Z* z;
  const Conv2dBoxParams& box;
  int column_tiles = (p.x_c + kColumns - 1) / kColumns;

  __device__ __forceinline__ static Boxes boxes_of(const ResidueClass& c, const Conv2dParams& p,
                                                   const Conv2dBoxParams& box) {
    return Boxes(box, c.w, c.h, p.n);
  }
  // The first class is the largest; boxes beyond a smaller one have outputs nowhere.
  __device__ __forceinline__ int boxes_of_largest() const { return boxes_of(ResidueClass(0, p), p, box).count(); }
  __device__ __forceinline__ int tiles() const { return boxes_of_largest() * column_tiles * p.stride_y * p.stride_x; }
  __device__ __forceinline__ Tile tile(int index) const {
    const int boxes = boxes_of_largest(), place = index / column_tiles;
    const ResidueClass c(place / boxes, p);
    const Corner corner = boxes_of(ResidueClass(0, p), p, box).corner(place % boxes);
    return {place / boxes,
            corner,
            index % column_tiles * kColumns,
            c.taps_y,
            c.taps_x,
            (c.x + p.pad_x - c.taps_x.first) / p.stride_x + corner.x,
            (c.y + p.pad_y - c.taps_y.first) / p.stride_y + corner.y};
  }
  __device__ __forceinline__ int steps(const Tile& t) const {
    return t.taps_y.count * t.taps_x.count * steps_of(p.g_c);
  }
  __device__ __forceinline__ void load(const Tile& t, int step, bf16* rows, bf16* columns, uint64_t* full) const {
    const int tap = step / steps_of(p.g_c), o = step % steps_of(p.g_c) * kDepth;
    const int j_y = tap / t.taps_x.count, j_x = tap % t.taps_x.count;
    ptx::tma_load_4d(rows, &g, o, t.x - j_x, t.y - j_y, t.corner.n, full);
    tap_of_w(columns, t, (t.taps_y.first + j_y * p.stride_y) * p.k_w + t.taps_x.first + j_x * p.stride_x, o, full);
  }
  __device__ __forceinline__ void tap_of_w(bf16* columns, const Tile& t, int tap, int o, uint64_t* full) const {
#  pragma unroll 1
    for (int block = 0; block < kColumns / 64; block++)
      ptx::tma_load_3d(columns + block * kBlock, &w, t.column + block * 64, tap, o, full);
  }
  template <typename Store>
  __device__ __forceinline__ void store(const Tile& t, Store store) const {
    const ResidueClass c(t.class_index, p);
    const Boxes boxes = boxes_of(c, p, box);
    store(TransposeOutput<Z>{z, a, p, c}, [&](int r) { return boxes.pixel(t.corner, r); }, t.column, p.x_c);
  }
};

template <int kColumns>
struct WeightGradPlan {
  static constexpr int kTransposeA = 1, kTransposeB = 1;
  struct Tile {
    int part, row, tap, channel;
  };
  const CUtensorMap& g;
  const CUtensorMap& x;
  const Conv2dParams& p;
  float* v;
  Boxes boxes;
  int channel_tiles = (p.x_c + kColumns - 1) / kColumns;
  int row_tiles = (p.g_c + kRows - 1) / kRows;
  int part = boxes.box.part > 0 ? boxes.box.part : max(boxes.count(), 1);

  // An empty batch has a part of nothing: its weights are zeros.
  __device__ __forceinline__ int parts() const { return max((boxes.count() + part - 1) / part, 1); }
  __device__ __forceinline__ int tiles() const { return parts() * row_tiles * p.k_h * p.k_w * channel_tiles; }
  __device__ __forceinline__ Tile tile(int index) const {
    const int taps = p.k_h * p.k_w, place = index / channel_tiles;
    return {place / taps / row_tiles, place / taps % row_tiles * kRows, place % taps, index % channel_tiles * kColumns};
  }
  __device__ __forceinline__ int steps(const Tile& t) const { return min(part, boxes.count() - t.part * part); }
  __device__ __forceinline__ void load(const Tile& t, int step, bf16* rows, bf16* columns, uint64_t* full) const {
    const Corner corner = boxes.corner(t.part * part + step);
    for (int block = 0; block < kRows / 64; block++)
      ptx::tma_load_4d(rows + block * kBlock, &g, t.row + block * 64, corner.x, corner.y, corner.n, full);
    const int x_at = input_at(corner.x, t.tap % p.k_w, p.stride_x, p.pad_x);
    const int y_at = input_at(corner.y, t.tap / p.k_w, p.stride_y, p.pad_y);
    for (int block = 0; block < kColumns / 64; block++)
      ptx::tma_load_4d(columns + block * kBlock, &x, t.channel + block * 64, x_at, y_at, corner.n, full);
  }
  template <typename Store>
  __device__ __forceinline__ void store(const Tile& t, Store store) const {
    const int columns = p.k_h * p.k_w * p.x_c, first = t.tap * p.x_c;
    const WeightOutput output{v + int64_t(t.part) * p.g_c * columns, columns, p.gain};
    store(output, [&](int r) { return t.row + r < p.g_c ? t.row + r : -1; }, first + t.channel, first + p.x_c);
  }
};

// ---- the pipeline

// Where a warpgroup is in the ring of stages.
struct RingPlace {
  int at = 0;
  __device__ __forceinline__ int stage() const { return at % kStages; }
  __device__ __forceinline__ int parity() const { return at / kStages & 1; }
};

template <int kColumns, typename Plan>
__device__ __forceinline__ void load_tiles(const Plan& plan, Stages<kColumns>* s) {
  RingPlace place;
  for (int index = int(blockIdx.x); index < plan.tiles(); index += int(gridDim.x)) {
    const auto tile = plan.tile(index);
    for (int step = 0; step < plan.steps(tile); step++, place.at++) {
      const int stage = place.stage();
      if (place.at >= kStages) ptx::mbar_wait(&s->empty[stage], place.parity() ^ 1);
      ptx::mbar_expect_tx(&s->full[stage], (kRows + kColumns) * kDepth * int(sizeof(bf16)));
      plan.load(tile, step, s->a[stage], s->b[stage], &s->full[stage]);
    }
  }
}

// Sixteen of k are 32 bytes of a row, or sixteen rows of 128 bytes; descriptors count in 16 bytes.
template <int kTransposed>
__device__ __forceinline__ uint64_t descriptor(const bf16* tile, int k) {
  if constexpr (kTransposed)
    return ptx::smem_desc_sw128_transposed(tile, kBlock * int(sizeof(bf16))) + k / 16 * 128;
  else
    return ptx::smem_desc_sw128(tile) + k / 16 * 2;
}

// kWhole: the tile has all its columns, and they are stored by twos. Nothing depends on the column then, so that the pairs
// follow one another without a branch.
template <int kColumns, bool kWhole, typename Output, typename RowOf>
__device__ __forceinline__ void store_sums(const Output& output, const float (&sums)[kColumns / 2], RowOf row_of,
                                           int column, int columns) {
  const int thread = int(threadIdx.x) % kWarpgroup, lane = thread % kWarp;
  const int first = int(threadIdx.x) / kWarpgroup * 64 - 64 + thread / kWarp * 16 + lane / 4;
  const bool pairs = kWhole || in_pairs(output, columns);
#  pragma unroll
  for (int half = 0; half < 2; half++) {
    const int r = row_of(first + half * 8);
    if (r < 0) continue;
    const auto out = output.row(r);
#  pragma unroll
    for (int i = 0; i < kColumns / 8; i++)
      store_two<kWhole>(output, out, column + i * 8 + lane % 4 * 2, columns, pairs, sums[i * 4 + half * 2],
                        sums[i * 4 + half * 2 + 1]);
  }
}

template <int kColumns, typename Plan>
__device__ __forceinline__ void multiply_tiles(const Plan& plan, Stages<kColumns>* s) {
  const int group = int(threadIdx.x) / kWarpgroup - 1;
  const bool arrives = int(threadIdx.x) % kWarp == 0;
  RingPlace place;
  for (int index = int(blockIdx.x); index < plan.tiles(); index += int(gridDim.x)) {
    const auto tile = plan.tile(index);
    const int steps = plan.steps(tile);
    float sums[kColumns / 2];
    clear(sums);
    for (int step = 0; step < steps; step++, place.at++) {
      const int stage = place.stage();
      ptx::mbar_wait(&s->full[stage], place.parity());
      ptx::wgmma_fence();
#  pragma unroll
      for (int k = 0; k < kDepth; k += 16)
        ptx::wgmma_bf16<kColumns, Plan::kTransposeA, Plan::kTransposeB>(
            sums, descriptor<Plan::kTransposeA>(s->a[stage] + group * kBlock, k),
            descriptor<Plan::kTransposeB>(s->b[stage], k));
      ptx::wgmma_commit();
      // The products before these are done: their stage is free.
      ptx::wgmma_wait<1>();
      if (step > 0 && arrives) ptx::mbar_arrive(&s->empty[(place.at - 1) % kStages]);
    }
    ptx::wgmma_wait<0>();
    if (steps > 0 && arrives) ptx::mbar_arrive(&s->empty[(place.at - 1) % kStages]);
    plan.store(tile, [&](const auto& output, auto row_of, int column, int columns) {
      if (column + kColumns <= columns && in_pairs(output, columns))
        store_sums<kColumns, true>(output, sums, row_of, column, columns);
      else
        store_sums<kColumns, false>(output, sums, row_of, column, columns);
    });
  }
}

// How every kernel begins: the stages, ready for use. What needs no memory but the parameters comes before the wait.
template <int kColumns>
__device__ __forceinline__ Stages<kColumns>* begin(const CUtensorMap& a, const CUtensorMap& b) {
  DYNAMIC_SHARED(Stages<kColumns>, s);
  if (threadIdx.x == 0) {
    ptx::tma_prefetch_descriptor(&a);
    ptx::tma_prefetch_descriptor(&b);
    for (int i = 0; i < kStages; i++) {
      ptx::mbar_init(&s->full[i], 1);
      ptx::mbar_init(&s->empty[i], 2 * kWarpgroup / kWarp);
    }
    ptx::fence_barrier_init();
  }
  dependent_launch();
  __syncthreads();
  return s;
}

template <int kColumns, typename Plan>
__device__ __forceinline__ void run(const Plan& plan, Stages<kColumns>* s) {
  if (int(threadIdx.x) < kWarpgroup) {
    ptx::reg_dealloc<56>();
    if (threadIdx.x == 0) load_tiles<kColumns>(plan, s);
  } else {
    ptx::reg_alloc<224>();
    multiply_tiles<kColumns>(plan, s);
  }
}

template <int kColumns, typename Y>
__device__ __forceinline__ void conv2d(const CUtensorMap& x, const CUtensorMap& w, const float* b, Y* y,
                                       const Conv2dParams& p, const EpilogueParams& e, const Conv2dBoxParams& box) {
  Stages<kColumns>* s = begin<kColumns>(x, w);
  const ActivatedOutput<Y> output{y, b, p.g_h * p.g_w, p.g_c, p.gain, Epilogue(e)};
  run(ForwardPlan<kColumns, Y>{x, w, p, output, Boxes(box, p.g_w, p.g_h, p.n)}, s);
}
template <int kColumns, typename Z>
__device__ __forceinline__ void conv2d_transpose(const CUtensorMap& g, const CUtensorMap& w, const float* a, Z* z,
                                                 const Conv2dParams& p, const Conv2dBoxParams& box) {
  Stages<kColumns>* s = begin<kColumns>(g, w);
  run(TransposePlan<kColumns, Z>{g, w, p, a, z, box}, s);
}
template <int kColumns>
__device__ __forceinline__ void conv2d_weight_grad(const CUtensorMap& g, const CUtensorMap& x, float* v,
                                                   const Conv2dParams& p, const Conv2dBoxParams& box) {
  Stages<kColumns>* s = begin<kColumns>(g, x);
  run(WeightGradPlan<kColumns>{g, x, p, v, Boxes(box, p.g_w, p.g_h, p.n)}, s);
}
#  define ON_SM90(call) call
#else
#  define ON_SM90(call) (void)0
#endif

// Entries with 256 columns, and with 128 for layers of so few channels.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_sm90_bf16(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w, const float* b,
                     float* y, Conv2dParams p, EpilogueParams e, Conv2dBoxParams box) {
  ON_SM90(conv2d<256>(x, w, b, y, p, e, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_sm90_narrow_bf16(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                            const float* b, float* y, Conv2dParams p, EpilogueParams e, Conv2dBoxParams box) {
  ON_SM90(conv2d<128>(x, w, b, y, p, e, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_sm90_stored_bf16(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                            const float* b, bf16* y, Conv2dParams p, EpilogueParams e, Conv2dBoxParams box) {
  ON_SM90(conv2d<256>(x, w, b, y, p, e, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_sm90_narrow_stored_bf16(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                                   const float* b, bf16* y, Conv2dParams p, EpilogueParams e, Conv2dBoxParams box) {
  ON_SM90(conv2d<128>(x, w, b, y, p, e, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_transpose_sm90_bf16(const __grid_constant__ CUtensorMap g, const __grid_constant__ CUtensorMap w,
                               const float* a, float* z, Conv2dParams p, Conv2dBoxParams box) {
  ON_SM90(conv2d_transpose<256>(g, w, a, z, p, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_transpose_sm90_narrow_bf16(const __grid_constant__ CUtensorMap g, const __grid_constant__ CUtensorMap w,
                                      const float* a, float* z, Conv2dParams p, Conv2dBoxParams box) {
  ON_SM90(conv2d_transpose<128>(g, w, a, z, p, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_transpose_sm90_stored_bf16(const __grid_constant__ CUtensorMap g, const __grid_constant__ CUtensorMap w,
                                      const float* a, bf16* z, Conv2dParams p, Conv2dBoxParams box) {
  ON_SM90(conv2d_transpose<256>(g, w, a, z, p, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_transpose_sm90_narrow_stored_bf16(const __grid_constant__ CUtensorMap g,
                                             const __grid_constant__ CUtensorMap w, const float* a, bf16* z,
                                             Conv2dParams p, Conv2dBoxParams box) {
  ON_SM90(conv2d_transpose<128>(g, w, a, z, p, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_weight_grad_sm90_bf16(const __grid_constant__ CUtensorMap g, const __grid_constant__ CUtensorMap x, float* v,
                                 Conv2dParams p, Conv2dBoxParams box) {
  ON_SM90(conv2d_weight_grad<256>(g, x, v, p, box));
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    conv2d_weight_grad_sm90_narrow_bf16(const __grid_constant__ CUtensorMap g, const __grid_constant__ CUtensorMap x,
                                        float* v, Conv2dParams p, Conv2dBoxParams box) {
  ON_SM90(conv2d_weight_grad<128>(g, x, v, p, box));
}
