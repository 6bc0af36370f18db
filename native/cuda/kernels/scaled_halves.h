// A row as FP16 numbers, each row times a power of two.
#pragma once

#include "cuda/kernels/device.h"

namespace glm_relay::cuda {

// The largest magnitude of a row becomes a number of [2^14, 2^15): FP16 has room for sixteen thousand times
// smaller ones without a loss, and for ten bits more before they vanish.
constexpr int kTopExponent = 14;
// Beyond it the factor itself would leave float32's normal range; such rows are as good as zero.
constexpr int kMaxShift = 100;

__device__ __forceinline__ float powerOfTwo(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// As bits, magnitudes are in order, infinity and NaN above all numbers.
__device__ __forceinline__ uint32_t magnitudeBits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

struct RowFactor {
  float factor;
  // Takes the factor back. The numbers of a row that is not finite would be finite; its products must not be.
  float scale;

  __device__ __forceinline__ explicit RowFactor(uint32_t largestMagnitude) {
    const int shift = kTopExponent - (static_cast<int>(largestMagnitude >> 23) - 127);
    const int kept = shift > kMaxShift ? kMaxShift : shift;
    factor = powerOfTwo(kept);
    scale = largestMagnitude >= 0x7f800000u ? __uint_as_float(0x7fc00000u) : powerOfTwo(-kept);
  }
};

__device__ __forceinline__ uint32_t halfPair(float first, float second) {
  return halfBits(first) | static_cast<uint32_t>(halfBits(second)) << 16;
}

}  // namespace glm_relay::cuda
