#include <immintrin.h>

#include "peaks.h"

namespace glm_relay {

namespace {
constexpr int kSums = 12;
}

// 32 byte products, added to 16-bit lanes; widening comes once per tile and is left out.
int64_t avx2Bytes(int64_t rounds) {
  __m256i sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) sum[i] = __m256i{};
  const __m256i w = _mm256_set1_epi8(3);
  __m256i x = _mm256_set1_epi8(5);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; i++) {
      asm("" : "+x"(x));
      sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(w, x));
      asm("" : "+x"(sum[i]));
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) sink = sink + _mm256_extract_epi16(sum[i], 0);
  return rounds * kSums * 32 * 2;
}

int64_t avx2Floats(int64_t rounds) {
  __m256 sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) sum[i] = __m256{};
  const __m256 x = _mm256_set1_ps(0.5f);
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; i++) {
      sum[i] = _mm256_fmadd_ps(sum[i], x, x);
      asm("" : "+x"(sum[i]));
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) sink = sink + static_cast<int64_t>(_mm256_cvtss_f32(sum[i]));
  return rounds * kSums * 8 * 2;
}

// Plain loads, one stream: what prefetches and other access patterns are held against.
void avx2Read(const uint8_t* memory, size_t bytes) {
  __m256i sums[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) sums[i] = __m256i{};
  for (size_t at = 0; at + sizeof(sums) <= bytes; at += sizeof(sums)) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      const auto* p = reinterpret_cast<const __m256i*>(memory + at + i * sizeof(__m256i));
      sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256(p));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) sink = sink + _mm256_extract_epi32(sums[i], 0);
}

}  // namespace glm_relay
