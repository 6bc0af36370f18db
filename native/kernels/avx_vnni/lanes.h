// Vectors of eight output rows, for CPUs that have AVX2 and VNNI but not AVX-512.
#pragma once

#include "kernels/byte_dot/quant_matmul.h"
#include "kernels/intrinsics.h"

namespace glm_relay {
namespace {

struct Lanes8 {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;
  // Vectors of output rows that are computed side by side.
  static constexpr int kSide = 2;
  // Rows of activations at a time: their sums fill half of the 16 registers.
  static constexpr int kRows = 4;

  static Floats broadcast(float x) { return _mm256_set1_ps(x); }
  // The first or second eight rows from `row` on, a multiple of 16: low or high halves of 32 bytes.
  static Ints weights(const Int4Tile& tile, int row, int side, int quad) {
    const auto* both = reinterpret_cast<const __m256i*>(tile.values[row / 16][quad]);
    const __m256i bytes = _mm256_load_si256(both);
    return _mm256_and_si256(side == 0 ? bytes : _mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
  }
  static Ints weights(const Int8Tile& tile, int row, int side, int quad) {
    const auto* bytes = reinterpret_cast<const __m256i*>(tile.values[row / 8 + side][quad]);
    return _mm256_xor_si256(_mm256_load_si256(bytes), _mm256_set1_epi8(-128));
  }
  static Ints weights(const byte_dot::SpreadTile& tile, int row, int side, int quad) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(tile.values[quad][row + side * kLanes]));
  }
  static Floats scales(const StripScales& scales, int row) {
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(scales.half + row)));
  }
  static Floats scales(const byte_dot::SpreadTile& tile, int row) {
    return _mm256_load_ps(tile.scales + row);
  }
  // What makes up for unsigned weights: `offset` is for those of 4 bits, an offset of 8; 128 is 16 times it.
  template <class Stored>
  static Ints start(const int16_t (&offset)[2]) {
    constexpr int16_t kTimes = sizeof(Stored) == sizeof(Int4Tile) ? 1 : 128 / kInt4Offset;
    int32_t both;
    std::memcpy(&both, offset, sizeof(both));
    return _mm256_madd_epi16(_mm256_set1_epi32(both), _mm256_set1_epi16(kTimes));
  }
  // Four columns of four rows of activations, and those of one row in every lane.
  using Quads = const int8_t (*)[kQuad];
  static Quads quads(const int8_t (&rows)[kTileRows][kQuad]) { return rows; }
  static Ints quad(Quads rows, int row) {
    int32_t bytes;
    std::memcpy(&bytes, rows[row], sizeof(bytes));
    return _mm256_set1_epi32(bytes);
  }
  // sum + the four byte products of each lane
  static Ints dot(Ints sum, Ints unsignedBytes, Ints signedBytes) {
    return _mm256_dpbusd_avx_epi32(sum, unsignedBytes, signedBytes);
  }
  static Floats toFloats(Ints x) { return _mm256_cvtepi32_ps(x); }
  static Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats load(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, Floats x) { _mm256_store_ps(p, x); }
  static void store(uint8_t* p, Ints x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
};

}  // namespace
}  // namespace glm_relay
