// The x86 instructions of the variants. With GLM_RELAY_SIMDE (native/build.sh --simde) they are SIMDe's
// portable functions, so that a CPU without AVX2 or AVX-512 checks the same sources; those that SIMDe
// lacks, or rounds in another way than the CPU, stand here element by element. In an unnamed namespace
// for the same reason as half.h.
#pragma once

#ifndef GLM_RELAY_SIMDE

#include <immintrin.h>

#else

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cmath>

#include "kernels/half.h"

namespace glm_relay {
namespace {
namespace imitated {

// The elements of a vector, and a vector of elements.
template <class Element, class Vector>
struct Elements {
  static constexpr int kCount = sizeof(Vector) / sizeof(Element);
  Element at[kCount];
  Elements() = default;
  explicit Elements(const Vector& vector) { std::memcpy(at, &vector, sizeof(at)); }
  Vector vector() const {
    Vector vector;
    std::memcpy(&vector, at, sizeof(at));
    return vector;
  }
};

// out[i] = element(in[i]); both vectors have equally many elements.
template <class Out, class OutElement, class InElement, class In, class Function>
Out each(const In& in, Function element) {
  const Elements<InElement, In> from(in);
  Elements<OutElement, Out> to;
  static_assert(from.kCount == to.kCount);
  for (int i = 0; i < to.kCount; i++) to.at[i] = element(from.at[i]);
  return to.vector();
}

// SIMDe multiplies and adds with two roundings.
template <class Vector>
Vector fma(const Vector& a, const Vector& b, const Vector& c, float signOfEven, float signOfOdd) {
  Elements<float, Vector> sum(c);
  const Elements<float, Vector> x(a);
  const Elements<float, Vector> y(b);
  for (int i = 0; i < sum.kCount; i++) {
    sum.at[i] = std::fmaf(x.at[i], y.at[i], sum.at[i] * (i % 2 == 0 ? signOfEven : signOfOdd));
  }
  return sum.vector();
}

}  // namespace imitated
}  // namespace
}  // namespace glm_relay

// What this version of SIMDe has of them, right or wrong.
#undef _mm256_fmadd_ps
#undef _mm256_fmsub_ps
#undef _mm256_fmaddsub_ps
#undef _mm512_fmadd_ps
#undef _mm256_cvtph_ps
#undef _mm256_cvtps_ph
#undef _mm512_cvtph_ps
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu16_epi32
#undef _mm512_srai_epi32
#undef _mm512_extractf32x8_ps
#undef _mm256_dpbusd_avx_epi32
#undef _mm512_madd_epi16
#undef __mmask16
#undef _MM_FROUND_NO_EXC

#define _mm256_fmadd_ps(a, b, c) glm_relay::imitated::fma<__m256>(a, b, c, 1.0f, 1.0f)
#define _mm256_fmsub_ps(a, b, c) glm_relay::imitated::fma<__m256>(a, b, c, -1.0f, -1.0f)
#define _mm256_fmaddsub_ps(a, b, c) glm_relay::imitated::fma<__m256>(a, b, c, -1.0f, 1.0f)
#define _mm512_fmadd_ps(a, b, c) glm_relay::imitated::fma<__m512>(a, b, c, 1.0f, 1.0f)

// SIMDe drops the payloads of NaNs.
#define _mm256_cvtph_ps(a) glm_relay::imitated::each<__m256, float, uint16_t>(a, glm_relay::halfToFloat)
#define _mm256_cvtps_ph(a, rounding) \
  glm_relay::imitated::each<__m128i, uint16_t, float>(a, glm_relay::floatToHalf)

#define _mm512_cvtph_ps(a) glm_relay::imitated::each<__m512, float, uint16_t>(a, glm_relay::halfToFloat)
#define _mm512_cvtepi32_ps(a) \
  glm_relay::imitated::each<__m512, float, int32_t>(a, [](int32_t x) { return static_cast<float>(x); })
#define _mm512_cvtepi8_epi32(a) \
  glm_relay::imitated::each<__m512i, int32_t, int8_t>(a, [](int8_t x) { return x; })
#define _mm512_cvtepu16_epi32(a) \
  glm_relay::imitated::each<__m512i, int32_t, uint16_t>(a, [](uint16_t x) { return x; })
#define _mm512_srai_epi32(a, count) \
  glm_relay::imitated::each<__m512i, int32_t, int32_t>(a, [](int32_t x) { return x >> (count); })
#define _mm512_extractf32x8_ps(a, half) \
  _mm256_castpd_ps(simde_mm512_extractf64x4_pd(simde_mm512_castps_pd(a), half))
#define __mmask16 simde__mmask16
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

#endif
