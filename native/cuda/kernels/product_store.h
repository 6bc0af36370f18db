// Which rows a block of threads computes by which weights, and what a sum becomes when it is complete.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/kernels/product.h"

namespace glm_relay::cuda {

// The columns follow from blockIdx.x.
struct Share {
  const uint8_t* weights;
  const float* rowScales;
  int firstTile;  // of rows
  int endRow;     // rows from here on are another block's, or nobody's

  __device__ __forceinline__ int endTile() const { return (endRow + kTileRows - 1) / kTileRows; }
};

__device__ __forceinline__ Share shareOf(const ProductArgs& args, int rowTiles) {
  return {args.weights, args.rowScales, static_cast<int>(blockIdx.y) * rowTiles, args.rows};
}
// No rows: the block has nothing to do.
__device__ __forceinline__ Share shareOf(const GroupedRows& grouped) {
  const ExpertTile tile = grouped.tiles[blockIdx.y];
  if (tile.rows == 0) return {nullptr, nullptr, 0, 0};
  const ExpertMatrix matrix = grouped.matrices[tile.expert];
  return {matrix.weights, matrix.rowScales, tile.firstRow / kTileRows, tile.firstRow + tile.rows};
}

// Value `i` of a lane's four sums of a row tile and a pair of blocks; see multiplyStep.
__device__ __forceinline__ void storeSum(const ProductArgs& args, const Share& share, float sum, int rowTile,
                                         int pair, int lane, int i) {
  const int row = rowTile * kTileRows + lane % 4 * 2 + i % 2;
  const int column = pair * 2 * kBlockRows + lane / 4 + i / 2 * kBlockRows;
  if (row >= share.endRow || column >= args.n) return;
  const float scaled = (sum * share.rowScales[column]) * args.xScales[row];
  args.y[static_cast<int64_t>(row) * args.n + column] = args.bias ? scaled + args.bias[column] : scaled;
}

inline unsigned int rowTilesOfGrid(const ProductArgs& args, int rowTiles, const GroupedRows* grouped) {
  const int rows = rowTiles * kTileRows;
  return static_cast<unsigned int>(grouped ? grouped->tileCount : (args.rows + rows - 1) / rows);
}

}  // namespace glm_relay::cuda
