// How rounded weights lie in memory. A matrix [n, k] is made of strips of 32 output rows; along k a
// strip is a sequence of weight groups, each one line of 32 FP16 scales (a scale per row) and then the
// group's tiles of 32 rows x 32 columns. One strip is one sequential stream, every tile begins on a
// cache line, and a lane is an output row, as in the float matrices (kernels.h).
//
// Rows and columns that fill up the last strip and the last tile are zero. A value is q * scale; which
// q and scale a weight gets is written down in ../CANON.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glm_relay {

// Goes up with every change of what stands where in a packed or rounded matrix, or of which values a weight
// is rounded to: files that keep such matrices (cache/) are then made anew.
constexpr uint32_t kWeightLayoutVersion = 1;

// Output rows of a strip, in float matrices too.
constexpr int kStripRows = 32;
// Activations are rounded in groups of so many columns, whatever the weight group: the width of a tile.
constexpr int kTileColumns = 32;
// Consecutive columns of a row that lie side by side, as the byte dot products of every CPU want them.
constexpr int kQuad = 4;

// The scales of a weight group: row r of the strip has half[r].
struct StripScales {
  uint16_t half[kStripRows];
};
static_assert(sizeof(StripScales) == 64, "one cache line");

// 4-bit values as q + 8, two to a byte: row 16h + j of the strip, j < 8, in the low half of
// values[h][column / 4][j][column % 4], and row 16h + 8 + j in the high half. Eight rows x 4 columns
// fill a 32-byte vector.
struct Int4Tile {
  uint8_t values[2][kTileColumns / kQuad][8][kQuad];
};
static_assert(sizeof(Int4Tile) == 512, "eight cache lines: with a scale line per tile 4.5 bits a weight");
constexpr int kInt4Offset = 8;

// 8-bit values: row 8e + j of the strip is values[e][column / 4][j][column % 4].
struct Int8Tile {
  int8_t values[4][kTileColumns / kQuad][8][kQuad];
};
static_assert(sizeof(Int8Tile) == 1024, "sixteen cache lines");

enum class WeightType : uint8_t { kStored = 0, kInt8 = 1, kInt4 = 2 };
// kAbsMax: the largest magnitude of a group gets the largest value. kSearch: the scale with the
// smallest squared error out of several.
enum class ScaleChoice : uint8_t { kAbsMax = 0, kSearch = 1 };

// The integers that a weight may become; symmetric with 8 bits, whose products need it.
struct QuantRange {
  float low;
  float high;
};
constexpr QuantRange quantRange(WeightType type) {
  return type == WeightType::kInt4 ? QuantRange{-8.0f, 7.0f} : QuantRange{-127.0f, 127.0f};
}

// What happens to a matrix when it is loaded.
struct WeightFormat {
  WeightType type = WeightType::kStored;
  int groupSize = 0;  // columns that share a scale, a multiple of 32; 0: a whole row
  ScaleChoice scales = ScaleChoice::kAbsMax;
};

// The arithmetic of the layout for one matrix.
struct QuantLayout {
  int strips;
  int tiles;          // along k
  int tilesPerGroup;  // the last group may have fewer
  size_t tileBytes;

  QuantLayout(int n, int k, const WeightFormat& format)
      : strips((n + kStripRows - 1) / kStripRows),
        tiles((k + kTileColumns - 1) / kTileColumns),
        tilesPerGroup(format.groupSize == 0 ? tiles : format.groupSize / kTileColumns),
        tileBytes(format.type == WeightType::kInt4 ? sizeof(Int4Tile) : sizeof(Int8Tile)) {}

  int groups() const { return (tiles + tilesPerGroup - 1) / tilesPerGroup; }
  size_t stripBytes() const { return groups() * sizeof(StripScales) + tiles * tileBytes; }
  size_t bytes() const { return static_cast<size_t>(strips) * stripBytes(); }
  // Within a strip.
  size_t scalesOffset(int group) const {
    return group * (sizeof(StripScales) + static_cast<size_t>(tilesPerGroup) * tileBytes);
  }
  size_t tileOffset(int tile) const {
    return (tile / tilesPerGroup + 1) * sizeof(StripScales) + tile * tileBytes;
  }
};

// Activations of up to 4 rows, rounded to 8 bits: 32 columns with one scale per row.
constexpr int kTileRows = 4;
struct ActivationTile {
  int8_t values[kTileColumns / kQuad][kTileRows][kQuad];  // never -128
  // -8 x the sum of a row's values in columns 0, 1 and in columns 2, 3 of every four: what the offset
  // of 4-bit weights adds to the two 16-bit halves of a 32-bit lane.
  int16_t offset[kTileRows][2];
  float scale[kTileRows];
};
static_assert(sizeof(ActivationTile) == 160, "40 bytes for a row of 32 columns");

// A matrix of activations [rows, k]: for every 4 rows the tiles along k.
inline size_t activationTiles(int rows, int k) {
  return static_cast<size_t>((rows + kTileRows - 1) / kTileRows) * ((k + kTileColumns - 1) / kTileColumns);
}

}  // namespace glm_relay
