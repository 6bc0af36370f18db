// The weights of one block (weight_layout.h) as a lane's fragments, dequantized on the way.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

// `block` is in shared memory. fragment(step, b) gives the lane's part of columns [16 step, 16 step + 16): a
// pair is q * scale, where q is exact in FP16 and the product is rounded once.
template <WeightType Type>
struct BlockFragments;

// The scales of a block: that of the lane's row for the group of a step, twice.
struct BlockScales {
  const uint16_t* ofRow;
  int stepShift;  // steps per group, as a power of two

  __device__ __forceinline__ BlockScales(const uint8_t* scales, int lane, int shift)
      : ofRow(reinterpret_cast<const uint16_t*>(scales) + lane / 4), stepShift(shift) {}
  __device__ __forceinline__ uint32_t pair(int step) const {
    const uint32_t scale = ofRow[(step >> stepShift) * kBlockRows];
    return scale | scale << 16;
  }
};

__device__ __forceinline__ const uint4* vectorOfLane(const uint8_t* block, int vector, int lane) {
  return reinterpret_cast<const uint4*>(block) + vector * kWarp + lane;
}
__device__ __forceinline__ uint32_t wordOf(const uint4& vector, int word) {
  return word == 0 ? vector.x : word == 1 ? vector.y : word == 2 ? vector.z : vector.w;
}

template <>
struct BlockFragments<WeightType::kInt4> {
  uint4 values;
  BlockScales scales;

  __device__ __forceinline__ BlockFragments(const uint8_t* block, int lane, int stepShift)
      : values(*vectorOfLane(block, 0, lane)),
        scales(block + blockDataBytes(WeightType::kInt4), lane, stepShift) {}

  __device__ __forceinline__ void fragment(int step, uint32_t (&b)[2]) const {
    const uint32_t word = wordOf(values, step / 2) >> (step % 2 * 8);
    const uint32_t scale = scales.pair(step);
    // A nibble n below the bits of 1024 is the FP16 number 1024 + n.
    for (int half = 0; half < 2; half++) {
      const uint32_t shifted = ((word >> (4 * half)) & 0x000f000fu) | 0x64006400u;
      b[half] = multiplyHalves(subtractHalves(shifted, 0x64086408u), scale);
    }
  }
};

template <>
struct BlockFragments<WeightType::kInt8> {
  uint4 values[2];
  BlockScales scales;

  __device__ __forceinline__ BlockFragments(const uint8_t* block, int lane, int stepShift)
      : values{*vectorOfLane(block, 0, lane), *vectorOfLane(block, 1, lane)},
        scales(block + blockDataBytes(WeightType::kInt8), lane, stepShift) {}

  __device__ __forceinline__ void fragment(int step, uint32_t (&b)[2]) const {
    const uint32_t word = wordOf(values[step / 4], step % 4);
    const uint32_t scale = scales.pair(step);
    // The byte q + 128 below the high byte of 1024 is 1152 + q.
    b[0] = multiplyHalves(subtractHalves(__byte_perm(word, 0x64646464u, 0x4140u), 0x64806480u), scale);
    b[1] = multiplyHalves(subtractHalves(__byte_perm(word, 0x64646464u, 0x4342u), 0x64806480u), scale);
  }
};

template <>
struct BlockFragments<WeightType::kStored> {
  uint4 values[4];

  __device__ __forceinline__ BlockFragments(const uint8_t* block, int lane, int)
      : values{*vectorOfLane(block, 0, lane), *vectorOfLane(block, 1, lane), *vectorOfLane(block, 2, lane),
               *vectorOfLane(block, 3, lane)} {}

  __device__ __forceinline__ void fragment(int step, uint32_t (&b)[2]) const {
    b[0] = wordOf(values[step / 2], step % 2 * 2);
    b[1] = wordOf(values[step / 2], step % 2 * 2 + 1);
  }
};

}  // namespace glm_relay::cuda
