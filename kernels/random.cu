// Random numbers addressed by (seed, stream, counter): Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). The same integers as src/ops/random on the CPU.
//
//   block(b)  = philox4x32_10(counter = [b mod 2^32, b / 2^32, stream mod 2^32, stream / 2^32],
//                             key     = [seed mod 2^32, seed / 2^32])          four words of 32 bits
//   word(i)   = block(first + i / 4)[i mod 4]                                  output element i
//   uniform   = (f32(word >> 8) + 1/2) 2^-24, the sum rounded to f32           in (0, 1]: never 0, 1 once in 2^24
//   normal    = Box-Muller on the pairs (0, 1) and (2, 3) of a block:
//               r = sqrt(-2 ln uniform(first)), phi = 2 pi uniform(second); r cos phi, then r sin phi
//
// first = params.counter, plus *position where that is not null. A captured graph keeps its randomness by a position in
// device memory, which random_advance moves on: n outputs use ceil(n / 4) blocks.
//
// Threads: one per block of four outputs, grid-stride. 16-byte stores where four outputs are left.
// Cost: 4 bytes written per output; 10 rounds of 2 wide multiplications per four outputs. Bound by stores.
// Numerics: words and uniforms are exact on every device. Normals use logf and sincospif: within a few units in the
// last place of the CPU's.
// Launched by src/ops/random/cuda.rs.
#include "common.cuh"

struct RandomParams {
  uint64_t seed, stream, counter;
  int64_t count;
};
static_assert(sizeof(RandomParams) == 32, "keep in step with src/ops/random/cuda.rs");

// One block of the generator with any counter and key; the constants are those of the paper.
__device__ __forceinline__ uint4 philox4x32_10(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    unsigned high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    unsigned high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

__device__ __forceinline__ uint4 random_block(const RandomParams& p, uint64_t block) {
  return philox4x32_10(make_uint4(unsigned(block), unsigned(block >> 32), unsigned(p.stream), unsigned(p.stream >> 32)),
                       make_uint2(unsigned(p.seed), unsigned(p.seed >> 32)));
}

__device__ __forceinline__ float uniform(unsigned word) { return (float(word >> 8) + 0.5f) * 0x1p-24f; }

__device__ __forceinline__ float2 normal_pair(unsigned first, unsigned second) {
  float radius = sqrtf(-2.0f * logf(uniform(first))), sine, cosine;
  sincospif(2.0f * uniform(second), &sine, &cosine);
  return make_float2(radius * cosine, radius * sine);
}

// The three kinds of output, four words at a time.
struct Bits {
  using Value = unsigned;
  __device__ static uint4 of(uint4 w) { return w; }
};
struct Uniform {
  using Value = float;
  __device__ static float4 of(uint4 w) { return make_float4(uniform(w.x), uniform(w.y), uniform(w.z), uniform(w.w)); }
};
struct Normal {
  using Value = float;
  __device__ static float4 of(uint4 w) {
    float2 low = normal_pair(w.x, w.y), high = normal_pair(w.z, w.w);
    return make_float4(low.x, low.y, high.x, high.y);
  }
};

template <typename Kind>
__device__ __forceinline__ void fill(typename Kind::Value* out, const uint64_t* position, const RandomParams& p) {
  dependent_launch();
  const uint64_t first = p.counter + (position ? *position : 0);
  for (int64_t block = global_thread(); block * 4 < p.count; block += grid_threads()) {
    auto four = Kind::of(random_block(p, first + uint64_t(block)));
    const int64_t at = block * 4;
    if (at + 4 <= p.count) {
      *reinterpret_cast<decltype(four)*>(out + at) = four;
      continue;
    }
    out[at] = four.x;
    if (at + 1 < p.count) out[at + 1] = four.y;
    if (at + 2 < p.count) out[at + 2] = four.z;
  }
}

extern "C" __global__ void random_bits_u32(unsigned* out, const uint64_t* position, RandomParams p) {
  fill<Bits>(out, position, p);
}
extern "C" __global__ void random_uniform_f32(float* out, const uint64_t* position, RandomParams p) {
  fill<Uniform>(out, position, p);
}
extern "C" __global__ void random_normal_f32(float* out, const uint64_t* position, RandomParams p) {
  fill<Normal>(out, position, p);
}
// Moves a position on by a number of blocks. One thread; a launch of its own, so that every reader is done.
extern "C" __global__ void random_advance(uint64_t* position, uint64_t blocks) {
  dependent_launch();
  *position += blocks;
}
