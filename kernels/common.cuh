// What kernel files share: dependent launch, shared memory, indices, 16-byte accesses, sums in a fixed order.
#pragma once
#include "ptx.cuh"

#ifdef __CUDACC__
// Shared memory, so that the emulator can give every variable its own guarded block:
//   SHARED(float, tile, [64][65]);      a variable of static size
//   DYNAMIC_SHARED(Stages, stages);     a pointer to the launch's dynamic shared memory
#  define SHARED(T, name, ...) __shared__ __align__(alignof(T) < 16 ? 16 : alignof(T)) T name __VA_ARGS__
#  define DYNAMIC_SHARED(T, name)                                           \
    extern __shared__ __align__(1024) unsigned char dynamic_shared_bytes[]; \
    T* name = reinterpret_cast<T*>(dynamic_shared_bytes)
#endif

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The first call of every kernel: programmatic dependent launch. The next grid of the stream may take its place on the
// chip while this one still runs, and waits there for its end, so that neither its launch nor its first instructions
// cost time between the two. src/device/cuda.rs asks for it at the launch.
//
// Why a kernel may let the next one start before it has done anything: the next grid starts when all blocks of this one
// have come here, so all of them run already and none is kept out. And why that orders memory as if grids did not
// overlap: every thread comes here before its first access to global memory, read or write, and before it ends. The
// wait returns when the grid before is complete; that grid was complete only after its own waits had returned, and so
// on, so whatever was launched earlier is done by then. Counters that a grid leaves at zero (is_last_block) are at
// zero.
//
// Before the call there may be what needs no global memory: indices, parameters, shared memory, barriers, prefetches of
// tensor maps that are parameters. Behind it the compiler must leave the loads. It need not do so with those through
// the read-only path, for which memory is the same during the whole kernel, and PTX's memory model does not cover them:
// kernels use neither __ldg nor __restrict__. tests/sass.rs looks where the machine code loads.
__device__ __forceinline__ void dependent_launch() {
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
}

// The grid-stride loop: for (int64_t i = global_thread(); i < n; i += grid_threads()).
__device__ __forceinline__ int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return int64_t(gridDim.x) * blockDim.x; }

// What tensors are stored as: float or bf16. All arithmetic is in f32.
using bf16 = __nv_bfloat16;
template <typename T>
constexpr int kLanes = 16 / int(sizeof(T));  // elements of 16 bytes

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void store_one(float* to, float value) { *to = value; }
__device__ __forceinline__ void store_one(bf16* to, float value) { *to = __float2bfloat16_rn(value); }
__device__ __forceinline__ unsigned two_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
// Two neighbours in one instruction; the address must be a multiple of their size.
__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}
__device__ __forceinline__ void store_pair(bf16* to, float first, float second) {
  *reinterpret_cast<unsigned*>(to) = two_bf16(first, second);
}

template <int N>
struct Lanes {
  float v[N];
};

// The numbers in 16 bytes, from lane `first` on, and back.
template <typename T, int N>
__device__ __forceinline__ void unpack(Lanes<N>& lanes, int first, uint4 bytes) {
  const unsigned words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if constexpr (sizeof(T) == 4) {
      lanes.v[first + i] = __uint_as_float(words[i]);
    } else {
      lanes.v[first + 2 * i] = __uint_as_float(words[i] << 16);
      lanes.v[first + 2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
template <typename T, int N>
__device__ __forceinline__ uint4 packed(const Lanes<N>& lanes, int first) {
  const auto word = [&](int i) {
    if constexpr (sizeof(T) == 4)
      return __float_as_uint(lanes.v[first + i]);
    else
      return two_bf16(lanes.v[first + 2 * i], lanes.v[first + 2 * i + 1]);
  };
  return make_uint4(word(0), word(1), word(2), word(3));
}

// How a load goes: past L1 what is used once, through it what neighbours use again, plainly from shared memory.
struct PastL1 {
  template <typename V>
  __device__ __forceinline__ static V load(const V* from) {
    return __ldcg(from);
  }
};
struct ThroughL1 {
  template <typename V>
  __device__ __forceinline__ static V load(const V* from) {
    return __ldca(from);
  }
};
struct Plainly {
  template <typename V>
  __device__ __forceinline__ static V load(const V* from) {
    return *from;
  }
};

// Elements [i, i + N) of a stream, 16 bytes at a time where they are more than one: those addresses must be multiples
// of 16.
template <int N, typename How = PastL1, typename T>
__device__ __forceinline__ Lanes<N> load_lanes(const T* slab, int64_t i) {
  Lanes<N> lanes;
  if constexpr (N == 1) {
    lanes.v[0] = widened(How::load(slab + i));
  } else {
#pragma unroll
    for (int first = 0; first < N; first += kLanes<T>)
      unpack<T>(lanes, first, How::load(reinterpret_cast<const uint4*>(slab + i + first)));
  }
  return lanes;
}
// Four bf16 are 8 bytes in one instruction.
template <int N, typename T>
__device__ __forceinline__ void store_lanes(T* slab, int64_t i, const Lanes<N>& lanes) {
  if constexpr (N == 1) {
    store_one(slab + i, lanes.v[0]);
  } else if constexpr (N < kLanes<T>) {
    static_assert(N == 4 && sizeof(T) == 2);
    __stcg(reinterpret_cast<uint2*>(slab + i),
           make_uint2(two_bf16(lanes.v[0], lanes.v[1]), two_bf16(lanes.v[2], lanes.v[3])));
  } else {
#pragma unroll
    for (int first = 0; first < N; first += kLanes<T>)
      __stcg(reinterpret_cast<uint4*>(slab + i + first), packed<T>(lanes, first));
  }
}

// Views into a slab start at any element: 16-byte accesses only where all their addresses allow them.
template <typename... Pointers>
__device__ __forceinline__ bool all_aligned16(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Calls pass.template visit<N>(i) for all elements [i, i + N) of `count` over the grid, with N = kMany if `wide`, and
// N = 1 for what is left.
template <int kMany = 4, typename Pass>
__device__ __forceinline__ void visit_elements(int64_t count, bool wide, const Pass& pass) {
  const int64_t body = wide ? count / kMany * kMany : 0;
  for (int64_t i = kMany * global_thread(); i < body; i += kMany * grid_threads()) pass.template visit<kMany>(i);
  for (int64_t i = body + global_thread(); i < count; i += grid_threads()) pass.template visit<1>(i);
}

// The sum over the warp, in every lane, by halving: the order of additions is the same in every run.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// The sum over a block of kThreads, in every thread, in an order that depends on kThreads only.
template <int kThreads, typename T>
__device__ __forceinline__ T block_sum(T value) {
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024);
  constexpr int kWarps = kThreads / kWarp;
  SHARED(T, warp_sums, [kWarps]);
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; warp++) total += warp_sums[warp];
  __syncthreads();  // the next call writes warp_sums again
  return total;
}

// Stores what an output (gemm_tile.cuh) makes of two sums of neighbouring columns; in one access where `pairs`. kInside: so
// it is, and both are inside.
template <bool kInside = false, typename Output, typename Row>
__device__ __forceinline__ void store_two(const Output& output, const Row& row, int column, int columns, bool pairs,
                                          float first, float second) {
  auto* to = output.data + row.at + column;
  if (kInside || (pairs && column < columns)) {
    store_pair(to, output.value(row, column, first), output.value(row, column + 1, second));
    return;
  }
  if (column < columns) store_one(to, output.value(row, column, first));
  if (column + 1 < columns) store_one(to + 1, output.value(row, column + 1, second));
}

// Whether an output's columns may be stored by twos.
template <typename Output>
__device__ __forceinline__ bool in_pairs(const Output& output, int columns) {
  return columns % 2 == 0 && reinterpret_cast<uintptr_t>(output.data) % (2 * sizeof(*output.data)) == 0;
}

// Zeros in an array of any rank, without a loop at run time: registers have no addresses.
__device__ __forceinline__ void clear(float& value) { value = 0.0f; }
template <typename T, int kCount>
__device__ __forceinline__ void clear(T (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i++) clear(values[i]);
}

// Division by a number that is the same for all, without a division: exact for numerators below 2^31.
struct Divisor {
  unsigned divisor, shift, multiplier;

  // A divisor of zero, which an empty sum may come with, becomes one.
  __device__ __forceinline__ explicit Divisor(int d)
      : divisor(d > 0 ? unsigned(d) : 1u), shift(32u - unsigned(__clz(divisor - 1u))) {
    multiplier = unsigned((((uint64_t(1) << shift) - divisor) << 32) / divisor) + 1u;
  }
  __device__ __forceinline__ int quotient(int n) const {
    return int((__umulhi(unsigned(n), multiplier) + unsigned(n)) >> shift);
  }
  __device__ __forceinline__ int remainder(int n) const { return n - quotient(n) * int(divisor); }
};

// True in every thread of the block that reaches this place last, which then sees what all others wrote before. A
// whole-grid result is finished there, in the same launch and in a fixed order. `arrivals` starts at zero and is zero
// again afterwards, so that the launch can be replayed.
__device__ __forceinline__ bool is_last_block(unsigned* arrivals) {
  SHARED(bool, last, [1]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last[0] = atomicInc(arrivals, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return last[0];
}
