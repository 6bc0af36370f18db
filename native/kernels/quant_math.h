// How weights, activations, keys and values are rounded: written once for all variants. In an unnamed
// namespace for the same reason as half.h.
#pragma once

#include <limits>

#include "kernels/half.h"

namespace glm_relay {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;

// The bits of the largest |x|, which order like the numbers, infinity and NaN on top: so the result
// does not depend on the order of comparisons, and a NaN is never lost.
inline uint32_t largestMagnitude(const float* x, int count) {
  uint32_t largest = 0;
  for (int i = 0; i < count; i++) {
    const uint32_t bits = floatBits(x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// To the nearest integer, ties to even; |x| < 2^22.
inline int roundToInt(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return static_cast<int>((x + kShift) - kShift);
}

// The integer that a weight becomes, as a float; |weight * inverse| < 2^22.
inline float roundWeight(float weight, float inverse, QuantRange range) {
  constexpr float kShift = 12582912.0f;
  float q = (weight * inverse + kShift) - kShift;
  q = q < range.low ? range.low : q;
  return q > range.high ? range.high : q;
}

inline float inverseScale(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

struct ActivationScale {
  float scale;
  float inverse;  // 0: every value is rounded to 0
};

// q = round(x * inverse), |q| <= 127; x is near q * scale. A group with an infinity or a NaN gets a NaN
// for its scale, so that the row's results are not finite; below 2^-100, where the inverse would soon
// overflow, a group counts as zero.
inline ActivationScale activationScale(uint32_t largest) {
  if (largest >= kInfinityBits) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  const float magnitude = bitsFloat(largest);
  if (magnitude < 0x1p-100f) return {0.0f, 0.0f};
  return {magnitude / 127.0f, 127.0f / magnitude};
}

struct HeadScale {
  uint16_t half;
  float inverse;  // 0: every value is rounded to 0
};

// The scale is rounded to FP16 first and the values by what was stored. Too large for FP16, it becomes
// infinite, and so does whatever reads the head.
inline HeadScale headScale(uint32_t largest) {
  if (largest > kInfinityBits) return {0x7e00u, 0.0f};
  const uint16_t half = floatToHalf(bitsFloat(largest) / 127.0f);
  const float scale = halfToFloat(half);
  const bool usable = scale > 0.0f && half < 0x7c00u;
  return {half, usable ? 1.0f / scale : 0.0f};
}

}  // namespace
}  // namespace glm_relay
