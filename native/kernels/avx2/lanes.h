// Eight float lanes for the AVX2 kernels, and loads and stores of the three storage types. Tails are
// done with masks or on the stack, so that every element goes through the same instructions.
#pragma once

#include "kernels/canon_math.h"
#include "kernels/intrinsics.h"

namespace glm_relay {
namespace {

struct Avx2Lanes {
  using Float = __m256;
  static inline Float set(float x) { return _mm256_set1_ps(x); }
  static inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static inline Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static inline Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static inline Float larger(Float a, Float b) { return _mm256_max_ps(a, b); }
  static inline Float smaller(Float a, Float b) { return _mm256_min_ps(a, b); }
  static inline Float scale(Float x, Float shifted, uint32_t shiftBits) {
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i n =
        _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(static_cast<int32_t>(shiftBits)));
    const __m256i half = _mm256_srai_epi32(n, 1);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
  }
};

// The first `count` (0..8) lanes switched on.
inline __m256i firstLanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Not std::fill: a copy of a library template, built with these flags, could be linked into code that
// runs on every CPU.
inline void setZero(float* out, int count) {
  for (int i = 0; i < count; i++) out[i] = 0.0f;
}

// treeSum of 16 lanes held in two vectors.
inline float treeSum(__m256 low, __m256 high) {
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

template <DType Type>
inline __m256 load8(const uint8_t* p);
template <>
inline __m256 load8<DType::kFloat32>(const uint8_t* p) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
}
template <>
inline __m256 load8<DType::kFloat16>(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
template <>
inline __m256 load8<DType::kBfloat16>(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

template <DType Type>
inline void store8(uint8_t* p, __m256 x);
template <>
inline void store8<DType::kFloat32>(uint8_t* p, __m256 x) {
  _mm256_storeu_ps(reinterpret_cast<float*>(p), x);
}
template <>
inline void store8<DType::kFloat16>(uint8_t* p, __m256 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
template <>
inline void store8<DType::kBfloat16>(uint8_t* p, __m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 isNan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), isNan);
  const __m256i top = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

}  // namespace
}  // namespace glm_relay
