// Products of rounded activations and rounded weights (quant/format.h), equal to scalar/: lanes are
// output rows, the sum over a tile's 32 columns is an exact integer whatever its order, and tiles
// follow one another in ascending order.
//
// Four rows of activations pass over a chunk of K whose weights stay in L1; the float sums wait in a
// small array in between. A weight of a 4-bit tile is taken as unsigned (q + 8), as the byte product of
// AVX2 wants one operand; what that adds is subtracted by the tile's `offset`, with which a sum starts.
// 16 products of a 16-bit lane then stay within 16 * 15 * 127 = 30480, before the offset within
// +-16256, so nothing saturates and widening waits for the end of the tile.
#include <algorithm>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"

namespace glm_relay {

namespace {

constexpr int kQuads = kTileColumns / kQuad;
// Rows that share one pass over a strip: 8 KB of sums.
constexpr int kRowBlock = 64;
// Tiles whose weights are kept in L1 while all rows of a block pass over them: 9 KB of 4-bit weights.
constexpr int kTileChunk = 16;
// Prefetch distance in bytes: eight 4-bit tiles ahead. Without it one row reached two thirds of the read
// bandwidth; on Zen 5 more brings more (half of it 24, this 32, twice as much 38 GB/s), on Zen 3 8 KB were
// too far.
constexpr int kPrefetchBytes = 4608;

// Keeps the compiler from reordering a chain of integer additions: GCC would keep all products of a
// tile alive at once and spill them.
inline void pin(__m256i& x) { asm("" : "+x"(x)); }

inline __m256i broadcast32(const void* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm256_set1_epi32(bits);
}

inline void prefetch(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes + i), _MM_HINT_T0);
  }
}

// sums[8 lanes] = fma(float(dot), weightScale * xScale, sums)
inline void addTile(float* sums, __m256i dot, __m256 weightScale, float xScale) {
  const __m256 scale = _mm256_mul_ps(weightScale, _mm256_set1_ps(xScale));
  _mm256_storeu_ps(sums, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, _mm256_loadu_ps(sums)));
}

inline __m256 scales8(const StripScales& scales, int row) {
  return load8<DType::kFloat16>(reinterpret_cast<const uint8_t*>(scales.half + row));
}

// sums[row][32 lanes] += one tile, for the first `Rows` rows of x.
template <int Rows>
inline void tile(float* sums, const Int4Tile& weights, const StripScales& scales, const ActivationTile& x) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; half++) {
    __m256i low[Rows];
    __m256i high[Rows];
    for (int r = 0; r < Rows; r++) low[r] = high[r] = broadcast32(x.offset[r]);
    for (int quad = 0; quad < kQuads; quad++) {
      const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights.values[half][quad]));
      const __m256i lowWeights = _mm256_and_si256(both, nibble);
      const __m256i highWeights = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
      for (int r = 0; r < Rows; r++) {
        const __m256i xQuad = broadcast32(x.values[quad][r]);
        low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(lowWeights, xQuad));
        pin(low[r]);
        high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(highWeights, xQuad));
        pin(high[r]);
      }
    }
    const __m256 lowScales = scales8(scales, 16 * half);
    const __m256 highScales = scales8(scales, 16 * half + 8);
    for (int r = 0; r < Rows; r++) {
      float* rowSums = sums + r * kStripRows + 16 * half;
      addTile(rowSums, _mm256_madd_epi16(low[r], ones), lowScales, x.scale[r]);
      addTile(rowSums + 8, _mm256_madd_epi16(high[r], ones), highScales, x.scale[r]);
    }
  }
}

// The same for 8-bit weights: |w| times x with w's sign. Two products of a 16-bit lane are at most
// 2 * 127 * 127 = 32258, so every pair is widened at once.
template <int Rows>
inline void tile(float* sums, const Int8Tile& weights, const StripScales& scales, const ActivationTile& x) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int pair = 0; pair < 2; pair++) {
    __m256i dots[Rows][2];
    for (int r = 0; r < Rows; r++) dots[r][0] = dots[r][1] = _mm256_setzero_si256();
    for (int quad = 0; quad < kQuads; quad++) {
      __m256i w[2];
      __m256i magnitude[2];
      for (int i = 0; i < 2; i++) {
        w[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights.values[2 * pair + i][quad]));
        magnitude[i] = _mm256_abs_epi8(w[i]);
      }
      for (int r = 0; r < Rows; r++) {
        const __m256i xQuad = broadcast32(x.values[quad][r]);
        for (int i = 0; i < 2; i++) {
          const __m256i products = _mm256_maddubs_epi16(magnitude[i], _mm256_sign_epi8(xQuad, w[i]));
          dots[r][i] = _mm256_add_epi32(dots[r][i], _mm256_madd_epi16(products, ones));
          pin(dots[r][i]);
        }
      }
    }
    for (int i = 0; i < 2; i++) {
      const int row = 8 * (2 * pair + i);
      const __m256 weightScales = scales8(scales, row);
      for (int r = 0; r < Rows; r++) {
        addTile(sums + r * kStripRows + row, dots[r][i], weightScales, x.scale[r]);
      }
    }
  }
}

// Tiles [begin, end) of a strip for `Rows` rows. The first rows to pass over them fetch what follows.
template <class Tile, int Rows>
void tiles(float* sums, const uint8_t* strip, const QuantLayout& layout, const ActivationTile* x, int begin,
           int end, bool first) {
  const uint8_t* weights = strip + layout.tileOffset(begin);
  const uint8_t* scales = strip + layout.scalesOffset(begin / layout.tilesPerGroup);
  int left = layout.tilesPerGroup - begin % layout.tilesPerGroup;  // of the weight group
  for (int t = begin; t < end; t++) {
    if (first) prefetch(weights, sizeof(Tile) + sizeof(StripScales));
    tile<Rows>(sums, *reinterpret_cast<const Tile*>(weights), *reinterpret_cast<const StripScales*>(scales),
               x[t]);
    weights += sizeof(Tile);
    if (--left > 0) continue;
    scales = weights;
    weights += sizeof(StripScales);
    left = layout.tilesPerGroup;
  }
}

// `rows` rows, at most kRowBlock, over all tiles of a strip.
template <class Tile>
void rowBlock(float* sums, const uint8_t* strip, const QuantLayout& layout, const ActivationTile* x,
              int rows) {
  // A single pass needs no chunks.
  const int chunk = rows <= kTileRows ? layout.tiles : kTileChunk;
  for (int begin = 0; begin < layout.tiles; begin += chunk) {
    const int end = std::min(layout.tiles, begin + chunk);
    for (int r = 0; r < rows; r += kTileRows) {
      float* part = sums + r * kStripRows;
      const ActivationTile* xRows = x + static_cast<int64_t>(r / kTileRows) * layout.tiles;
      switch (std::min(kTileRows, rows - r)) {
        case 1:
          tiles<Tile, 1>(part, strip, layout, xRows, begin, end, r == 0);
          break;
        case 2:
          tiles<Tile, 2>(part, strip, layout, xRows, begin, end, r == 0);
          break;
        case 3:
          tiles<Tile, 3>(part, strip, layout, xRows, begin, end, r == 0);
          break;
        default:
          tiles<Tile, 4>(part, strip, layout, xRows, begin, end, r == 0);
      }
    }
  }
}

template <class Tile>
void matmul(const QuantMatmulArgs& args, WeightType type) {
  const QuantLayout layout(args.n, args.k, {type, args.tilesPerGroup * kTileColumns, ScaleChoice::kAbsMax});
  alignas(32) float sums[kRowBlock * kStripRows];
  for (int strip = args.stripBegin; strip < args.stripEnd; strip++) {
    const uint8_t* weights = args.strips + strip * layout.stripBytes();
    const int n0 = strip * kStripRows;
    const int nCount = std::min(kStripRows, args.n - n0);
    for (int m0 = 0; m0 < args.rows; m0 += kRowBlock) {
      const int rows = std::min(kRowBlock, args.rows - m0);
      setZero(sums, rows * kStripRows);
      rowBlock<Tile>(sums, weights, layout, args.x + static_cast<int64_t>(m0 / kTileRows) * layout.tiles,
                     rows);
      for (int r = 0; r < rows; r++) {
        float* y = args.y + static_cast<int64_t>(m0 + r) * args.n + n0;
        const float* sum = sums + r * kStripRows;
        for (int n = 0; n < nCount; n++) y[n] = args.bias ? sum[n] + args.bias[n0 + n] : sum[n];
      }
    }
  }
}

}  // namespace

void avx2MatmulInt8(const QuantMatmulArgs& args) { matmul<Int8Tile>(args, WeightType::kInt8); }
void avx2MatmulInt4(const QuantMatmulArgs& args) { matmul<Int4Tile>(args, WeightType::kInt4); }

}  // namespace glm_relay
