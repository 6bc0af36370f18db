// Four float lanes for the NEON kernels, and loads and stores of the three storage types.
#pragma once

#include <arm_neon.h>

#include "kernels/canon_math.h"

namespace glm_relay {
namespace {

// Sixteen lanes, the number in which sums are made, as vectors of four.
constexpr int kTreeVectors = kTreeLanes / 4;

struct NeonLanes {
  using Float = float32x4_t;
  static inline Float set(float x) { return vdupq_n_f32(x); }
  static inline Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static inline Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static inline Float sub(Float a, Float b) { return vsubq_f32(a, b); }
  static inline Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static inline Float div(Float a, Float b) { return vdivq_f32(a, b); }
  // Not vmaxq and vminq: the second operand must win when either is NaN.
  static inline Float larger(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static inline Float smaller(Float a, Float b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static inline Float scale(Float x, Float shifted, uint32_t shiftBits) {
    const int32x4_t bias = vdupq_n_s32(127);
    const int32x4_t n =
        vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(static_cast<int32_t>(shiftBits)));
    const int32x4_t half = vshrq_n_s32(n, 1);
    const int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(n, half), bias), 23);
    return vmulq_f32(vmulq_f32(x, vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
  }
};

// Not std::fill: a copy of a library template, built with these flags, could be linked into code that
// runs on every CPU.
inline void setZero(float* out, int count) {
  for (int i = 0; i < count; i++) out[i] = 0.0f;
}

// treeSum of 16 lanes held in four vectors.
inline float treeSum(const float32x4_t lanes[kTreeVectors]) {
  const float32x4_t four = vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

inline uint16x4_t loadBits4(const uint8_t* p) { return vreinterpret_u16_u8(vld1_u8(p)); }

template <DType Type>
inline float32x4_t load4(const uint8_t* p);
template <>
inline float32x4_t load4<DType::kFloat32>(const uint8_t* p) {
  return vreinterpretq_f32_u8(vld1q_u8(p));
}
template <>
inline float32x4_t load4<DType::kFloat16>(const uint8_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(loadBits4(p)));
}
template <>
inline float32x4_t load4<DType::kBfloat16>(const uint8_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(loadBits4(p), 16));
}

template <DType Type>
inline void store4(uint8_t* p, float32x4_t x);
template <>
inline void store4<DType::kFloat16>(uint8_t* p, float32x4_t x) {
  vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x)));
}
template <>
inline void store4<DType::kBfloat16>(uint8_t* p, float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  const uint32x4_t isNumber = vceqq_f32(x, x);
  vst1_u8(p, vreinterpret_u8_u16(vshrn_n_u32(vbslq_u32(isNumber, rounded, quiet), 16)));
}

}  // namespace
}  // namespace glm_relay
