// Products of rounded activations and rounded weights (quant/format.h) with instructions that add four
// byte products to every 32-bit lane (VNNI, dot products of NEON), equal to scalar/: lanes are output
// rows, the sum over a tile's 32 columns is an exact integer whatever its order, and tiles follow one
// another in ascending order. Written once for vectors of any width; `V` (lanes.h of a variant) says what
// a vector is, how many rows of weights and of activations suit its registers, and what is multiplied.
//
// A variant may multiply bytes that are greater than the weights by a constant: of 4 bits q + 8, as they
// are stored, of 8 bits q + 128 where the instruction wants one operand unsigned. What that adds is a
// multiple of the sum of the row's activations, which a tile of activations holds (`offset`), and with
// which a sum starts (`V::start`).
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/with_count.h"

namespace glm_relay {
namespace {
namespace byte_dot {

constexpr int kQuads = kTileColumns / kQuad;
// Rows that share one pass over a strip: 16 KB of sums.
constexpr int kRowBlock = 128;
// Tiles whose weights are kept in L1 while all rows of a block pass over them, 4 KB spread out: more would
// drive out the rows' activations.
constexpr int kTileChunk = 4;
// Prefetch distance in bytes: sixteen 4-bit tiles ahead. Four, as with AVX2 on older machines, are too few
// where a tile takes half as long: 8 rows reached 480 instead of 580 Gop/s, one row 30 instead of 38 GB/s.
constexpr int kPrefetchBytes = 9216;
// Rows from which on it pays to spread out a chunk's weights once for all of them.
constexpr int kSpreadRows = 24;

// A tile whose weights are bytes already, as and in the order in which they are multiplied, and its scales.
struct SpreadTile {
  uint8_t values[kTileColumns / kQuad][kStripRows][kQuad];
  float scales[kStripRows];
};

inline void prefetch(const uint8_t* p, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(p + kPrefetchBytes + i);
  }
}

// sums[row][32 lanes] += one tile, for the first `Rows` rows of x, which lie in one or two tiles.
// `Stored` is what they were stored as.
template <class V, class Stored, int Rows, class Tile, class Scales>
inline void tile(float* sums, const Tile& weights, const Scales& scales, const ActivationTile* const* x) {
  using Ints = typename V::Ints;
  using Floats = typename V::Floats;
  constexpr int kSide = V::kSide;
// Unrolled, the compiler would keep all activations of a tile for the next half, and spill them.
#pragma GCC unroll 1
  for (int row = 0; row < kStripRows; row += kSide * V::kLanes) {
    Ints dots[Rows][kSide];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
      dots[r][0] = V::template start<Stored>(x[r / kTileRows]->offset[r % kTileRows]);
      for (int i = 1; i < kSide; i++) dots[r][i] = dots[r][0];
    }
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; quad++) {
      Ints w[kSide];
#pragma GCC unroll 8
      for (int i = 0; i < kSide; i++) w[i] = V::weights(weights, row, i, quad);
      typename V::Quads quads[(Rows + kTileRows - 1) / kTileRows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r += kTileRows)
        quads[r / kTileRows] = V::quads(x[r / kTileRows]->values[quad]);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) {
        const auto xQuad = V::quad(quads[r / kTileRows], r % kTileRows);
#pragma GCC unroll 8
        for (int i = 0; i < kSide; i++) dots[r][i] = V::dot(dots[r][i], w[i], xQuad);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kSide; i++) {
      const Floats weightScale = V::scales(scales, row + i * V::kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++) {
        float* lanes = sums + r * kStripRows + row + i * V::kLanes;
        const Floats scale = V::times(weightScale, V::broadcast(x[r / kTileRows]->scale[r % kTileRows]));
        V::store(lanes, V::fma(V::toFloats(dots[r][i]), scale, V::load(lanes)));
      }
    }
  }
}

// Where a strip's tiles and their scales lie, one after the other.
template <class Tile>
class TileWalk {
 public:
  TileWalk(const uint8_t* strip, const QuantLayout& layout, int tile)
      : weights_(strip + layout.tileOffset(tile)),
        scales_(strip + layout.scalesOffset(tile / layout.tilesPerGroup)),
        left_(layout.tilesPerGroup - tile % layout.tilesPerGroup),
        tilesPerGroup_(layout.tilesPerGroup) {}

  const Tile& tile() const { return *reinterpret_cast<const Tile*>(weights_); }
  const StripScales& scales() const { return *reinterpret_cast<const StripScales*>(scales_); }
  void fetchAhead() const { prefetch(weights_, sizeof(Tile) + sizeof(StripScales)); }

  void next() {
    weights_ += sizeof(Tile);
    if (--left_ > 0) return;
    scales_ = weights_;
    weights_ += sizeof(StripScales);
    left_ = tilesPerGroup_;
  }

 private:
  const uint8_t* weights_;
  const uint8_t* scales_;
  int left_;  // of the weight group
  int tilesPerGroup_;
};

// Tiles [begin, end) of a strip for `Rows` rows, which are all rows there are: what comes next is fetched.
template <class V, class Tile, int Rows>
void tiles(float* sums, const uint8_t* strip, const QuantLayout& layout, const ActivationTile* x, int begin,
           int end, bool first) {
  TileWalk<Tile> walk(strip, layout, begin);
  for (int t = begin; t < end; t++, walk.next()) {
    if (first) walk.fetchAhead();
    const ActivationTile* const rows[2] = {x + t, Rows > kTileRows ? x + layout.tiles + t : nullptr};
    tile<V, Tile, Rows>(sums, walk.tile(), walk.scales(), rows);
  }
}

// The same of `count` tiles that have been spread out.
template <class V, class Tile, int Rows>
void spreadTiles(float* sums, const SpreadTile* spread, int count, const QuantLayout& layout,
                 const ActivationTile* x) {
  for (int t = 0; t < count; t++) {
    const ActivationTile* const rows[2] = {x + t, Rows > kTileRows ? x + layout.tiles + t : nullptr};
    tile<V, Tile, Rows>(sums, spread[t], spread[t], rows);
  }
}

// Spreads out the tiles [begin, end) of a strip.
template <class V, class Tile>
void spread(SpreadTile* out, const uint8_t* strip, const QuantLayout& layout, int begin, int end) {
  TileWalk<Tile> walk(strip, layout, begin);
  for (int t = begin; t < end; t++, walk.next(), out++) {
    walk.fetchAhead();
    for (int row = 0; row < kStripRows; row += V::kSide * V::kLanes) {
      for (int quad = 0; quad < kQuads; quad++) {
        for (int i = 0; i < V::kSide; i++) {
          V::store(out->values[quad][row + i * V::kLanes], V::weights(walk.tile(), row, i, quad));
        }
      }
    }
    for (int row = 0; row < kStripRows; row += V::kLanes) {
      V::store(out->scales + row, V::scales(walk.scales(), row));
    }
  }
}

// `rows` rows, at most kRowBlock, over all tiles of a strip.
template <class V, class Tile>
void rowBlock(float* sums, SpreadTile* room, const uint8_t* strip, const QuantLayout& layout,
              const ActivationTile* x, int rows) {
  static_assert(V::kRows == kTileRows || V::kRows == 2 * kTileRows);
  static_assert(kSpreadRows > V::kRows, "there is room for a chunk only");
  // A single pass needs no chunks.
  const int chunk = rows <= V::kRows ? layout.tiles : kTileChunk;
  const bool isSpread = rows >= kSpreadRows;
  for (int begin = 0; begin < layout.tiles; begin += chunk) {
    const int end = std::min(layout.tiles, begin + chunk);
    if (isSpread) spread<V, Tile>(room, strip, layout, begin, end);
    for (int r = 0; r < rows; r += V::kRows) {
      const ActivationTile* xRows = x + static_cast<int64_t>(r / kTileRows) * layout.tiles;
      float* part = sums + r * kStripRows;
      withCount<V::kRows>(std::min(V::kRows, rows - r), [&](auto count) {
        if (isSpread) {
          spreadTiles<V, Tile, count>(part, room, end - begin, layout, xRows + begin);
        } else {
          tiles<V, Tile, count>(part, strip, layout, xRows, begin, end, r == 0);
        }
      });
    }
  }
}

template <class V, class Tile>
void matmul(const QuantMatmulArgs& args, WeightType type) {
  const QuantLayout layout(args.n, args.k, {type, args.tilesPerGroup * kTileColumns, ScaleChoice::kAbsMax});
  alignas(64) float sums[kRowBlock * kStripRows];
  alignas(64) SpreadTile room[kTileChunk];
  for (int strip = args.stripBegin; strip < args.stripEnd; strip++) {
    const uint8_t* weights = args.strips + strip * layout.stripBytes();
    const int n0 = strip * kStripRows;
    const int nCount = std::min(kStripRows, args.n - n0);
    for (int m0 = 0; m0 < args.rows; m0 += kRowBlock) {
      const int rows = std::min(kRowBlock, args.rows - m0);
      for (int i = 0; i < rows * kStripRows; i++) sums[i] = 0.0f;
      rowBlock<V, Tile>(sums, room, weights, layout,
                        args.x + static_cast<int64_t>(m0 / kTileRows) * layout.tiles, rows);
      for (int r = 0; r < rows; r++) {
        float* y = args.y + static_cast<int64_t>(m0 + r) * args.n + n0;
        const float* sum = sums + r * kStripRows;
        for (int n = 0; n < nCount; n++) y[n] = args.bias ? sum[n] + args.bias[n0 + n] : sum[n];
      }
    }
  }
}

}  // namespace byte_dot
}  // namespace
}  // namespace glm_relay
