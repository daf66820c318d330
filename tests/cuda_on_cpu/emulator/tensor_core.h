// ldmatrix and mma.sync. Fragment layouts follow the PTX manual ("Matrix Fragments for mma").
//
// Products of bf16 and TF32 are exact in f32; sums are f32 in the order of k. A tensor core sums a group at once with
// truncated alignment, so results agree with a device to rounding, not to the bit.
#pragma once
#include "collectives.h"
#include <cstring>

namespace cuda_on_cpu {
constexpr unsigned kWholeWarp = ~0u;

struct LdmatrixSlot {
  const unsigned char* row;
  unsigned* registers;
};
// Matrix m has its eight rows of 16 bytes at the addresses of lanes 8m to 8m + 7.
inline void load_matrices(LdmatrixSlot** lanes, int matrices, bool transposed) {
  for (int m = 0; m < matrices; m++) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; row++) std::memcpy(matrix[row], lanes[m * 8 + row]->row, 16);
    for (int lane = 0; lane < 32; lane++) {
      int i = lane / 4, j = lane % 4 * 2;
      uint16_t low = transposed ? matrix[j][i] : matrix[i][j];
      uint16_t high = transposed ? matrix[j + 1][i] : matrix[i][j + 1];
      lanes[lane]->registers[m] = low | unsigned(high) << 16;
    }
  }
}
template <int kMatrices>
void ldmatrix(unsigned (&registers)[kMatrices], const void* row, bool transposed, const char* what, Location here) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("%s: the row address is not aligned to 16 bytes", what);
  LdmatrixSlot slot{static_cast<const unsigned char*>(row), registers};
  warp_collective(kWholeWarp, &slot, what, here,
                  [transposed](LdmatrixSlot** lanes) { load_matrices(lanes, kMatrices, transposed); });
}

inline float bf16_half(unsigned pair, int high) { return std::bit_cast<float>(high ? pair & 0xffff0000u : pair << 16); }
// The hardware ignores the low 13 bits of a TF32 operand.
inline float tf32_operand(unsigned bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

struct MmaSlot {
  const unsigned* a;
  const unsigned* b;
  float* d;
};
// D[16][8] += A[16][kK] B[kK][8]; `place` puts one lane's registers into the matrices.
template <int kK, class Place>
void mma_m16n8(const unsigned* a, const unsigned* b, float* d, const char* what, Location here, Place place) {
  MmaSlot slot{a, b, d};
  warp_collective(kWholeWarp, &slot, what, here, [place](MmaSlot** lanes) {
    float a_matrix[16][kK], b_matrix[kK][8], d_matrix[16][8];
    auto element = [&](int lane, int i) -> float& { return d_matrix[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]; };
    for (int lane = 0; lane < 32; lane++) {
      place(*lanes[lane], lane / 4, lane % 4, a_matrix, b_matrix);
      for (int i = 0; i < 4; i++) element(lane, i) = lanes[lane]->d[i];
    }
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < kK; k++)
        for (int j = 0; j < 8; j++) d_matrix[i][j] += a_matrix[i][k] * b_matrix[k][j];
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) lanes[lane]->d[i] = element(lane, i);
  });
}
}  // namespace cuda_on_cpu

namespace ptx {

inline void ldmatrix_x4(unsigned (&registers)[4], const void* row, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::ldmatrix(registers, row, false, "ldmatrix.x4", here);
}
inline void ldmatrix_x4_trans(unsigned (&registers)[4], const void* row, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::ldmatrix(registers, row, true, "ldmatrix.x4.trans", here);
}
inline void ldmatrix_x2(unsigned (&registers)[2], const void* row, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::ldmatrix(registers, row, false, "ldmatrix.x2", here);
}
inline void ldmatrix_x2_trans(unsigned (&registers)[2], const void* row, CUDA_ON_CPU_HERE) {
  cuda_on_cpu::ldmatrix(registers, row, true, "ldmatrix.x2.trans", here);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], CUDA_ON_CPU_HERE) {
  using namespace cuda_on_cpu;
  auto place = [](const MmaSlot& lane, int group, int quad, float(&am)[16][16], float(&bm)[16][8]) {
    for (int i = 0; i < 8; i++)
      am[group + i / 2 % 2 * 8][quad * 2 + i % 2 + i / 4 * 8] = bf16_half(lane.a[i / 2], i % 2);
    for (int i = 0; i < 4; i++) bm[quad * 2 + i % 2 + i / 2 * 8][group] = bf16_half(lane.b[i / 2], i % 2);
  };
  mma_m16n8<16>(a, b, d, "mma.m16n8k16.bf16", here, place);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], CUDA_ON_CPU_HERE) {
  using namespace cuda_on_cpu;
  auto place = [](const MmaSlot& lane, int group, int quad, float(&am)[16][8], float(&bm)[8][8]) {
    for (int i = 0; i < 4; i++) am[group + i % 2 * 8][quad + i / 2 * 4] = tf32_operand(lane.a[i]);
    for (int i = 0; i < 2; i++) bm[quad + i * 4][group] = tf32_operand(lane.b[i]);
  };
  mma_m16n8<8>(a, b, d, "mma.m16n8k8.tf32", here, place);
}

// cvt.rna.tf32.f32: to nearest, ties away from zero.
inline unsigned to_tf32(float value) {
  unsigned bits = std::bit_cast<unsigned>(value);
  if ((bits & 0x7f800000) == 0x7f800000) return bits;
  return (bits + 0x1000) & 0xffffe000u;
}

// mma.m8n8k4 in double precision: D[8][8] += A[8][4] B[4][8].
inline void mma_m8n8k4_f64(double (&d)[2], double a, double b, CUDA_ON_CPU_HERE) {
  struct Slot {
    double a, b;
    double* d;
  } slot{a, b, d};
  cuda_on_cpu::warp_collective(cuda_on_cpu::kWholeWarp, &slot, "mma.m8n8k4.f64", here, [](Slot** lanes) {
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 2; i++) {
        int row = lane / 4, column = lane % 4 * 2 + i;
        for (int k = 0; k < 4; k++)
          lanes[lane]->d[i] = std::fma(lanes[row * 4 + k]->a, lanes[column * 4 + k]->b, lanes[lane]->d[i]);
      }
  });
}

}  // namespace ptx
