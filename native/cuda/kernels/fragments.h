// The weights of one block (weight_layout.h) as a lane's fragments, dequantized on the way: a weight is
// q * scale, where q is exact in FP16 and the product is rounded once. Weights are the instruction's first
// operand, 16 outputs, and x its second, 8 rows: few rows leave less of it unused than the other way round.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/kernels/kernels.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

// A quarter of a block: 32 columns, two steps. Quarters share no group's border, as groups have 32 columns or
// more.
constexpr int kQuarters = 4;
constexpr int kQuarterSteps = kBlockSteps / kQuarters;

constexpr int quartersPerVector(WeightType type) { return kQuarters / vectorsPerLane(type); }

__device__ __forceinline__ uint32_t wordOf(const uint4& vector, int word) {
  return word == 0 ? vector.x : word == 1 ? vector.y : word == 2 ? vector.z : vector.w;
}

// A lane takes the 8 bytes of a block's scales that those of its row are in: at this offset.
__device__ __forceinline__ int scaleVector(int lane, int groupsPerBlock) {
  return lane / 4 * 2 * groupsPerBlock & ~7;
}

// Which of these bytes belong to a quarter, as selectors that give the scale twice.
struct ScaleSelectors {
  uint32_t ofQuarter[kQuarters];

  __device__ __forceinline__ ScaleSelectors(int lane, int groupsPerBlock) {
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      const int group = quarter * groupsPerBlock / kQuarters;
      const uint32_t byte = static_cast<uint32_t>((lane / 4 * groupsPerBlock + group) * 2 & 7);
      const uint32_t once = byte | (byte + 1) << 4;
      ofQuarter[quarter] = once | once << 8;
    }
  }
  __device__ __forceinline__ uint32_t pair(const uint2& scales, int quarter) const {
    return __byte_perm(scales.x, scales.y, ofQuarter[quarter]);
  }
};

// b[step] of the quarter from the vector that holds it; `scale` is the quarter's, twice.
//
// The bits of a small integer are an FP16 number, that integer times 2^-24, and scales have a factor that
// makes up for it (weight_layout.h). As the offset of q is a power of two, its product with a scale is exact,
// and one instruction gives q * scale, rounded once. kFewRegisters: with one more
// instruction and one register less, the same bits (where a sixteenth of a scale is not exact all weights are
// 0).
template <WeightType kType, bool kFewRegisters = false>
__device__ __forceinline__ void dequantize(const uint4& vector, int quarter, uint32_t scale,
                                           uint32_t (&b)[kQuarterSteps][2]) {
  if constexpr (kType == WeightType::kInt4) {
    const uint32_t low = wordOf(vector, quarter);
    const uint32_t words[kQuarterSteps] = {low, low >> 8};
    // Four bits higher a nibble is 16 times as much.
    const uint32_t sixteenth = multiplyHalves(scale, 0x2c002c00u);
    const uint32_t offset = multiplyHalves(scale, 0x80088008u);  // -8 * 2^-24
#pragma unroll
    for (int step = 0; step < kQuarterSteps; step++) {
      b[step][0] = fusedHalves(words[step] & 0x000f000fu, scale, offset);
      b[step][1] = kFewRegisters ? fusedHalves(words[step] >> 4 & 0x000f000fu, scale, offset)
                                 : fusedHalves(words[step] & 0x00f000f0u, sixteenth, offset);
    }
  } else if constexpr (kType == WeightType::kInt8) {
    const uint32_t offset = multiplyHalves(scale, 0x80808080u);  // -128 * 2^-24
#pragma unroll
    for (int step = 0; step < kQuarterSteps; step++) {
      const uint32_t word = wordOf(vector, quarter % 2 * kQuarterSteps + step);
      b[step][0] = fusedHalves(__byte_perm(word, 0, 0x4140u), scale, offset);
      b[step][1] = fusedHalves(__byte_perm(word, 0, 0x4342u), scale, offset);
    }
  } else {
    b[0][0] = vector.x;
    b[0][1] = vector.y;
    b[1][0] = vector.z;
    b[1][1] = vector.w;
  }
}

// Adds the products of one step: of two blocks of weights, 16 outputs, with the two vectors of a quarter of x
// that 8 rows of it are. Value i of `sums` is output lane / 4 (+ 8 for i > 1) of row lane % 4 * 2 (+ 1 for
// odd i).
template <Path kPath>
__device__ __forceinline__ void multiplyStep(float (&sums)[4], const uint32_t (&first)[2],
                                             const uint32_t (&second)[2], const uint4& x, int step) {
  const uint32_t a[4] = {first[0], second[0], first[1], second[1]};
  const uint32_t b[2] = {step == 0 ? x.x : x.z, step == 0 ? x.y : x.w};
  if constexpr (kPath == Path::kAmpere) {
    multiply16x8x16(sums, a, b);
  } else {
    multiply16x8x8(sums, a, b[0]);
    multiply16x8x8(sums, a + 2, b[1]);
  }
}

}  // namespace glm_relay::cuda
