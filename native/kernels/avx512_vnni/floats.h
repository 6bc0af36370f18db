// Sixteen float lanes for the AVX-512 kernels, and loads of the storage types.
#pragma once

#include <immintrin.h>

#include "kernels/canon_math.h"
#include "kernels/kernels.h"

namespace glm_relay {
namespace {

struct Avx512Lanes {
  using Float = __m512;
  static inline Float set(float x) { return _mm512_set1_ps(x); }
  static inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static inline Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static inline Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static inline Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }
  static inline Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }
  static inline Float scale(Float x, Float shifted, uint32_t shiftBits) {
    const __m512i bias = _mm512_set1_epi32(127);
    const __m512i n =
        _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(static_cast<int32_t>(shiftBits)));
    const __m512i half = _mm512_srai_epi32(n, 1);
    const __m512i first = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    const __m512i second = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias), 23);
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_castsi512_ps(first)), _mm512_castsi512_ps(second));
  }
};

// The first `count` (0..16) lanes.
inline __mmask16 firstLanes(int count) {
  return count >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1);
}

template <DType Type>
inline __m512 load16(const uint8_t* p);
template <>
inline __m512 load16<DType::kFloat32>(const uint8_t* p) {
  return _mm512_loadu_ps(reinterpret_cast<const float*>(p));
}
template <>
inline __m512 load16<DType::kFloat16>(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <>
inline __m512 load16<DType::kBfloat16>(const uint8_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

}  // namespace
}  // namespace glm_relay
