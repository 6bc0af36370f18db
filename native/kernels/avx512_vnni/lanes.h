// Vectors of sixteen output rows, for AVX-512 with VNNI.
#pragma once

#include "kernels/byte_dot/quant_matmul.h"
#include "kernels/intrinsics.h"

namespace glm_relay {
namespace {

struct Lanes16 {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  // Vectors of output rows that are computed side by side.
  static constexpr int kSide = 2;
  // Rows of activations at a time: their sums fill half of the 32 registers.
  static constexpr int kRows = 8;

  static Floats broadcast(float x) { return _mm512_set1_ps(x); }
  // The first or second sixteen rows from `row` on, a multiple of 32: the low halves of 32 bytes are the
  // lower eight lanes.
  static Ints weights(const Int4Tile& tile, int row, int side, int quad) {
    const auto* both = reinterpret_cast<const __m256i*>(tile.values[row / 16 + side][quad]);
    const __m512i twice = _mm512_broadcast_i64x4(_mm256_load_si256(both));
    const __m512i shifts = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi32(twice, shifts), _mm512_set1_epi8(15));
  }
  static Ints weights(const Int8Tile& tile, int row, int side, int quad) {
    const auto* low = reinterpret_cast<const __m256i*>(tile.values[row / 8 + 2 * side][quad]);
    const auto* high = reinterpret_cast<const __m256i*>(tile.values[row / 8 + 2 * side + 1][quad]);
    const __m512i lower = _mm512_castsi256_si512(_mm256_load_si256(low));
    return _mm512_xor_si512(_mm512_inserti64x4(lower, _mm256_load_si256(high), 1), _mm512_set1_epi8(-128));
  }
  static Ints weights(const byte_dot::SpreadTile& tile, int row, int side, int quad) {
    return _mm512_load_si512(tile.values[quad][row + side * kLanes]);
  }
  static Floats scales(const StripScales& scales, int row) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(scales.half + row)));
  }
  static Floats scales(const byte_dot::SpreadTile& tile, int row) {
    return _mm512_load_ps(tile.scales + row);
  }
  // What makes up for unsigned weights: `offset` is for those of 4 bits, an offset of 8; 128 is 16 times it.
  template <class Stored>
  static Ints start(const int16_t (&offset)[2]) {
    constexpr int16_t kTimes = sizeof(Stored) == sizeof(Int4Tile) ? 1 : 128 / kInt4Offset;
    int32_t both;
    std::memcpy(&both, offset, sizeof(both));
    return _mm512_madd_epi16(_mm512_set1_epi32(both), _mm512_set1_epi16(kTimes));
  }
  // Four columns of four rows of activations, and those of one row in every lane.
  using Quads = const int8_t (*)[kQuad];
  static Quads quads(const int8_t (&rows)[kTileRows][kQuad]) { return rows; }
  static Ints quad(Quads rows, int row) {
    int32_t bytes;
    std::memcpy(&bytes, rows[row], sizeof(bytes));
    return _mm512_set1_epi32(bytes);
  }
  // sum + the four byte products of each lane
  static Ints dot(Ints sum, Ints unsignedBytes, Ints signedBytes) {
    return _mm512_dpbusd_epi32(sum, unsignedBytes, signedBytes);
  }
  static Floats toFloats(Ints x) { return _mm512_cvtepi32_ps(x); }
  static Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats load(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, Floats x) { _mm512_store_ps(p, x); }
  static void store(uint8_t* p, Ints x) { _mm512_store_si512(p, x); }
};

}  // namespace
}  // namespace glm_relay
