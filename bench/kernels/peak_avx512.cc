#include <immintrin.h>

#include "peaks.h"

namespace glm_relay {

namespace {
constexpr int kSums = 16;
}

int64_t avx512VnniBytes(int64_t rounds) {
  __m512i sum[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; i++) sum[i] = __m512i{};
  const __m512i w = _mm512_set1_epi8(3);
  const __m512i x = _mm512_set1_epi8(5);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; i++) {
      sum[i] = _mm512_dpbusd_epi32(sum[i], w, x);
      asm("" : "+v"(sum[i]));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; i++) sink = sink + _mm_extract_epi32(_mm512_castsi512_si128(sum[i]), 0);
  return rounds * kSums * 64 * 2;
}

int64_t avx512Floats(int64_t rounds) {
  __m512 sum[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; i++) sum[i] = __m512{};
  const __m512 x = _mm512_set1_ps(0.5f);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; i++) {
      sum[i] = _mm512_fmadd_ps(sum[i], x, x);
      asm("" : "+v"(sum[i]));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; i++) sink = sink + static_cast<int64_t>(_mm512_cvtss_f32(sum[i]));
  return rounds * kSums * 16 * 2;
}

}  // namespace glm_relay
