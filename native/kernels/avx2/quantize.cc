// Rounds activations, keys and values to 8 bits, equal to scalar/quant_matmul.cc.
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"
#include "kernels/quant_math.h"

namespace glm_relay {

namespace {

inline __m256i magnitudeBits(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

// Magnitudes order like their bits, and as signed integers too: the sign bit is gone.
inline uint32_t largestLane(__m256i bits) {
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

inline __m256i rounded(__m256 x, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)); }

// 32 integers of at most 127 as bytes, in order.
inline __m256i bytes(const __m256i q[4]) {
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Row r of a tile from the 32 values of its group.
inline void quantizeGroup(ActivationTile& tile, int r, const __m256 x[4]) {
  __m256i largest = magnitudeBits(x[0]);
  for (int i = 1; i < 4; i++) largest = _mm256_max_epi32(largest, magnitudeBits(x[i]));
  const ActivationScale scale = activationScale(largestLane(largest));
  __m256i q[4] = {};
  if (scale.inverse != 0.0f) {
    for (int i = 0; i < 4; i++) q[i] = rounded(x[i], _mm256_set1_ps(scale.inverse));
  }
  const __m256i row = bytes(q);
  alignas(32) int32_t quads[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(quads), row);
  for (int i = 0; i < 8; i++) std::memcpy(tile.values[i][r], quads + i, sizeof(int32_t));

  // Columns 0, 1 and 2, 3 of every four, as the two halves of 32-bit lanes, over the eight quads.
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), row);
  __m128i sums = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4e));
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xb1));
  const __m128i offset = _mm_mullo_epi16(sums, _mm_set1_epi16(-kInt4Offset));
  const int32_t both = _mm_cvtsi128_si32(offset);
  std::memcpy(tile.offset[r], &both, sizeof(both));
  tile.scale[r] = scale.scale;
}

}  // namespace

float avx2RoundingError(const float* weights, int count, float scale, QuantRange range) {
  const __m256 inverse = _mm256_set1_ps(inverseScale(scale));
  const __m256 scale8 = _mm256_set1_ps(scale);
  const __m256 low = _mm256_set1_ps(range.low);
  const __m256 high = _mm256_set1_ps(range.high);
  const auto squared = [&](const float* in) {
    const __m256 w = _mm256_loadu_ps(in);
    const __m256 q =
        _mm256_round_ps(_mm256_mul_ps(w, inverse), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 kept = _mm256_min_ps(_mm256_max_ps(q, low), high);
    const __m256 error = _mm256_sub_ps(w, _mm256_mul_ps(kept, scale8));
    return _mm256_mul_ps(error, error);
  };
  __m256 first = _mm256_setzero_ps();
  __m256 second = _mm256_setzero_ps();
  for (int i = 0; i < count; i += kTreeLanes) {
    first = _mm256_add_ps(first, squared(weights + i));
    second = _mm256_add_ps(second, squared(weights + i + 8));
  }
  return treeSum(first, second);
}

void avx2QuantizeRows(ActivationTile* out, const float* x, int rows, int k) {
  const int tiles = (k + kTileColumns - 1) / kTileColumns;
  for (int t = 0; t < tiles; t++) {
    const int columns = k - t * kTileColumns;
    for (int r = 0; r < kTileRows; r++) {
      __m256 group[4] = {};
      if (r < rows) {
        const float* in = x + static_cast<int64_t>(r) * k + t * kTileColumns;
        for (int i = 0; i < 4; i++) group[i] = _mm256_maskload_ps(in + 8 * i, firstLanes(columns - 8 * i));
      }
      quantizeGroup(out[t], r, group);
    }
  }
}

void avx2QuantizeHead(int8_t* out, uint16_t* scale, const float* in, int headDim) {
  __m256i largest = _mm256_setzero_si256();
  for (int d = 0; d < headDim; d += 8) {
    largest = _mm256_max_epi32(largest, magnitudeBits(_mm256_maskload_ps(in + d, firstLanes(headDim - d))));
  }
  const HeadScale head = headScale(largestLane(largest));
  *scale = head.half;
  for (int d = 0; d < headDim; d += 8) {
    __m256i q = _mm256_setzero_si256();
    if (head.inverse != 0.0f) {
      const __m256 x =
          _mm256_mul_ps(_mm256_maskload_ps(in + d, firstLanes(headDim - d)), _mm256_set1_ps(head.inverse));
      q = _mm256_cvtps_epi32(
          _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(127.0f)));
    }
    alignas(32) int32_t values[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(values), q);
    for (int i = 0; i < 8 && d + i < headDim; i++) out[d + i] = static_cast<int8_t>(values[i]);
  }
}

}  // namespace glm_relay
