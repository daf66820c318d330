// Hopper: mbarriers, bulk tensor copies (TMA), warpgroup matrix products (wgmma).
//
// All three run as late as the model allows: a TMA load delivers only when somebody waits on an mbarrier, a wgmma reads
// shared memory and writes its accumulators only at the wait. A forgotten wait or a stage released too early therefore
// gives NaN or a wrong result. Layouts (swizzle, descriptors, accumulators) are those of the PTX manual.
#pragma once
#include "collectives.h"
#include "memory.h"

// The driver's type; the stand-in cuTensorMapEncodeTiled keeps its own record in it.
struct alignas(128) CUtensorMap {
  uint64_t opaque[16];
};

namespace cuda_on_cpu {
void mbarrier_init(uint64_t* barrier, int arrivals);
void mbarrier_arrive(uint64_t* barrier, int transaction_bytes);
void mbarrier_wait(uint64_t* barrier, int parity, Location location);
void tma_load(void* destination, const CUtensorMap* map, const int* coordinates, int rank, uint64_t* barrier);
// A matrix descriptor, and whether its tile has rows contiguous and not k.
struct WgmmaOperand {
  uint64_t descriptor;
  bool transposed;
};
void wgmma_issue(float* d, int n, WgmmaOperand a, WgmmaOperand b, bool accumulate, Location location);
void wgmma_commit();
void wgmma_wait(int pending);
}  // namespace cuda_on_cpu

namespace ptx {

inline void mbar_init(uint64_t* barrier, int arrivals) { cuda_on_cpu::mbarrier_init(barrier, arrivals); }
inline void mbar_arrive(uint64_t* barrier) { cuda_on_cpu::mbarrier_arrive(barrier, 0); }
inline void mbar_expect_tx(uint64_t* barrier, int bytes) { cuda_on_cpu::mbarrier_arrive(barrier, bytes); }
inline void mbar_wait(uint64_t* barrier, int parity, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::mbarrier_wait(barrier, parity, here);
}
// Memory is sequentially consistent here, so the fences have nothing to do; a forgotten one is not seen.
inline void fence_barrier_init() {}
inline void fence_proxy_async() {}

inline void tma_load_2d(void* destination, const CUtensorMap* map, int c0, int c1, uint64_t* barrier) {
  const int coordinates[] = {c0, c1};
  cuda_on_cpu::tma_load(destination, map, coordinates, 2, barrier);
}
inline void tma_load_3d(void* destination, const CUtensorMap* map, int c0, int c1, int c2, uint64_t* barrier) {
  const int coordinates[] = {c0, c1, c2};
  cuda_on_cpu::tma_load(destination, map, coordinates, 3, barrier);
}
inline void tma_load_4d(void* destination, const CUtensorMap* map, int c0, int c1, int c2, int c3, uint64_t* barrier) {
  const int coordinates[] = {c0, c1, c2, c3};
  cuda_on_cpu::tma_load(destination, map, coordinates, 4, barrier);
}
inline void tma_prefetch_descriptor(const CUtensorMap*) {}

// Matrix descriptor of a K-major tile with rows of 128 bytes and 128-byte swizzle: eight rows are 1024 bytes apart.
inline uint64_t smem_desc_sw128(const void* tile) {
  return uint64_t((smem_u32(tile) & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
// The same of a tile whose rows are contiguous in runs of 64: `block` bytes between the runs.
inline uint64_t smem_desc_sw128_transposed(const void* tile, int block) {
  return uint64_t((smem_u32(tile) & 0x3ffff) >> 4) | uint64_t(block >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}
inline void wgmma_fence() {}
inline void wgmma_commit() { cuda_on_cpu::wgmma_commit(); }
template <int kPending>
void wgmma_wait() {
  cuda_on_cpu::wgmma_wait(kPending);
}
// D[64][kN] (+)= A[64][16] B[kN][16]^T, both operands from shared memory.
template <int kN, int kTransposeA = 0, int kTransposeB = 0>
void wgmma_bf16(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate = 1, CUDA_ON_CPU_HERE) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256);
  cuda_on_cpu::wgmma_issue(d, kN, {a, kTransposeA != 0}, {b, kTransposeB != 0}, accumulate != 0, here);
}
// Register budgets move between warpgroups on the device only.
template <int kRegisters>
void reg_alloc() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void reg_dealloc() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}

}  // namespace ptx
