// What the stand-in driver keeps inside a CUtensorMap.
#pragma once
#include <cstring>

#include "hopper.h"

namespace cuda_on_cpu {
struct TensorMap {
  char* base;
  uint64_t extent[5], stride[5];  // stride in bytes
  uint32_t box[5];
  uint8_t step[5];                       // every so many elements of a box are loaded
  uint8_t rank, element_bytes, swizzle;  // swizzle: 0 none, 1 of 32, 2 of 64, 3 of 128 bytes

  // Elements of a box that are loaded along a dimension.
  uint32_t loaded(unsigned d) const { return (box[d] + step[d] - 1) / step[d]; }

  static TensorMap from(const CUtensorMap& map) {
    TensorMap copy;
    std::memcpy(&copy, &map, sizeof copy);
    return copy;
  }
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));
}  // namespace cuda_on_cpu
