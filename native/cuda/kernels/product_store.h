// What a sum becomes when it is complete.
#pragma once

#include "cuda/kernels/device.h"
#include "cuda/kernels/product.h"

namespace glm_relay::cuda {

// Value `i` of a lane's four is row lane / 4 (+ 8) and column lane % 4 * 2 (+ 1) of its tile.
__device__ __forceinline__ void storeSum(const ProductArgs& args, float sum, int rowTile, int rowBlock,
                                         int lane, int i) {
  const int row = rowTile * kTileRows + lane / 4 + i / 2 * 8;
  const int column = rowBlock * kBlockRows + lane % 4 * 2 + i % 2;
  if (row >= args.rows || column >= args.n) return;
  const float scaled = (sum * args.rowScales[column]) * args.xScales[row];
  args.y[static_cast<int64_t>(row) * args.n + column] = args.bias ? scaled + args.bias[column] : scaled;
}

}  // namespace glm_relay::cuda
