#include <immintrin.h>

#include "peaks.h"

namespace glm_relay {

int64_t avxVnniBytes(int64_t rounds) {
  constexpr int kSums = 12;
  __m256i sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) sum[i] = __m256i{};
  const __m256i w = _mm256_set1_epi8(3);
  const __m256i x = _mm256_set1_epi8(5);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; i++) {
      sum[i] = _mm256_dpbusd_avx_epi32(sum[i], w, x);
      asm("" : "+x"(sum[i]));
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) sink = sink + _mm256_extract_epi32(sum[i], 0);
  return rounds * kSums * 32 * 2;
}

}  // namespace glm_relay
