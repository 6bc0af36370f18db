// How weight matrices lie in a GPU's memory: as blocks of 8 output rows x 128 columns, those of 8 rows one
// behind the other along k. A block holds, for each lane of a warp, the values that the lane needs as its
// fragments of eight matrix instructions (16 columns each), so that a warp reads a block as whole vectors of
// 16 bytes and nothing has to be exchanged. Rows and columns that fill up the last blocks are zero.
//
// Lane l has row l / 4 and, of every 16 columns, 2t, 2t + 1, 2t + 8 and 2t + 9 with t = l % 4: below
// "value v" for v = 0..3 of step s = 0..7.
//
// - 4 bits, q + 8: one vector per lane. Its 32-bit word s / 2 has the values of steps s and s + 1: value v of
//   the even step is nibble {0, 4, 1, 5}[v], of the odd one {2, 6, 3, 7}[v]: two values whose nibbles are 16
//   bits apart become a pair of FP16 numbers by one mask.
// - 8 bits, q + 128: vector s / 4 of two, byte 4 (s % 4) + v.
// - FP16: vector s / 2 of four, number 4 (s % 2) + v.
//
// Of rounded matrices the FP16 scales follow: for each of the 8 rows those of its groups (one per 32, 64 or
// 128 columns), so that a lane gets all scales of its row at once.
//
// Numbers of a row are brought to the top of FP16's range: scales, or FP16 values, are multiplied by a power
// of two, and rowScale of the matrix takes it back. So bfloat16 weights, which have fewer bits but a wider
// range, fit, and of rounded ones, which kernels compute as q * 2^-24 * scale, no bit is lost in groups whose
// scale is a 32nd of the row's largest one or more; in others their error is 2^-19 of the row's largest
// weight at most.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace glm_relay::cuda {

constexpr int kBlockRows = 8;
constexpr int kBlockColumns = 128;
// Columns of one matrix instruction, and how many of them a block has.
constexpr int kStepColumns = 16;
constexpr int kBlockSteps = kBlockColumns / kStepColumns;
constexpr int kVectorBytes = 16;
// Where a lane's values of a 4-bit word are.
constexpr int kNibbleOfValue[2][4] = {{0, 4, 1, 5}, {2, 6, 3, 7}};

// kStored: FP16.
constexpr int vectorsPerLane(WeightType type) {
  return type == WeightType::kInt4 ? 1 : type == WeightType::kInt8 ? 2 : 4;
}
constexpr int blockDataBytes(WeightType type) { return vectorsPerLane(type) * 32 * kVectorBytes; }
constexpr int kMaxGroupsPerBlock = 4;
constexpr int maxBlockBytes(WeightType type) {
  return blockDataBytes(type) + (type == WeightType::kStored ? 0 : kMaxGroupsPerBlock * kVectorBytes);
}

// The arithmetic of the layout for one matrix [n, k].
struct WeightLayout {
  int rowBlocks;
  int columnBlocks;
  int groupsPerBlock;  // 0: not rounded
  int blockBytes;

  WeightLayout(int n, int k, const WeightFormat& format)
      : rowBlocks((n + kBlockRows - 1) / kBlockRows),
        columnBlocks((k + kBlockColumns - 1) / kBlockColumns),
        groupsPerBlock(format.type == WeightType::kStored ? 0
                       : format.groupSize == 0 || format.groupSize >= kBlockColumns
                           ? 1
                           : kBlockColumns / format.groupSize),
        blockBytes(blockDataBytes(format.type) + groupsPerBlock * kVectorBytes) {}

  int paddedColumns() const { return columnBlocks * kBlockColumns; }
  size_t rowBlockBytes() const { return static_cast<size_t>(columnBlocks) * blockBytes; }
  size_t bytes() const { return rowBlocks * rowBlockBytes(); }
};

// The input of a product, FP16, lies as the same instructions want it: rows in tiles of 8, and of every tile
// and 32 columns the 16 bytes of each lane one behind the other. Lane l has row l / 4 and, with t = l % 4, of
// both steps of 16 columns the columns 2t, 2t + 1, 2t + 8 and 2t + 9.
constexpr int kTileRows = 8;
constexpr int kQuarterColumns = 2 * kStepColumns;
constexpr int64_t halfIndex(int row, int column, int paddedColumns) {
  const int64_t quarter =
      static_cast<int64_t>(row / kTileRows) * (paddedColumns / kQuarterColumns) + column / kQuarterColumns;
  const int lane = row % kTileRows * 4 + column % 8 / 2;
  return (quarter * 32 + lane) * 8 + column % kQuarterColumns / 8 * 2 + column % 2;
}
// FP16 numbers to make room for when so many rows come: whole tiles, and the columns of one block that are
// read ahead and not used.
constexpr int64_t halvesOf(int rows, int paddedColumns) {
  return static_cast<int64_t>((rows + kTileRows - 1) / kTileRows) * kTileRows * paddedColumns +
         kTileRows * kBlockColumns;
}

// Sums along k are made in so many parts, each of the same number of whole blocks but the last ones, and put
// together in order: few rows of x leave a GPU idle unless several warps share the columns.
constexpr int kParts = 4;
constexpr int blocksPerPart(int columnBlocks) { return (columnBlocks + kParts - 1) / kParts; }

}  // namespace glm_relay::cuda
