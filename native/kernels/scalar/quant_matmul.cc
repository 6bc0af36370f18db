// Products of rounded activations and rounded weights, and the rounding of activations. The sum over
// a tile's 32 columns is an exact integer; tiles follow one another in ascending order, each with one
// fused multiply-add.
#include <algorithm>
#include <cmath>

#include "kernels/canon_math.h"
#include "kernels/quant_math.h"
#include "kernels/scalar/scalar.h"

namespace glm_relay {

namespace {

// The weight of one row and column of a tile.
int weightAt(const Int8Tile& tile, int row, int column) {
  return tile.values[row / 8][column / kQuad][row % 8][column % kQuad];
}

int weightAt(const Int4Tile& tile, int row, int column) {
  const int byte = tile.values[row / 16][column / kQuad][row % 8][column % kQuad];
  return (row % 16 < 8 ? byte & 15 : byte >> 4) - kInt4Offset;
}

template <class Tile>
int32_t dot(const Tile& tile, int row, const ActivationTile& x, int xRow) {
  int32_t sum = 0;
  for (int c = 0; c < kTileColumns; c++) {
    sum += weightAt(tile, row, c) * x.values[c / kQuad][xRow][c % kQuad];
  }
  return sum;
}

template <class Tile>
void matmul(const QuantMatmulArgs& args, WeightType type) {
  const QuantLayout layout(args.n, args.k, {type, args.tilesPerGroup * kTileColumns, ScaleChoice::kAbsMax});
  const int nEnd = std::min(args.n, args.stripEnd * kStripRows);
  for (int m = 0; m < args.rows; m++) {
    const ActivationTile* x = args.x + static_cast<int64_t>(m / kTileRows) * layout.tiles;
    for (int n = args.stripBegin * kStripRows; n < nEnd; n++) {
      const uint8_t* strip = args.strips + (n / kStripRows) * layout.stripBytes();
      const int row = n % kStripRows;
      float sum = 0.0f;
      for (int t = 0; t < layout.tiles; t++) {
        const auto& tile = *reinterpret_cast<const Tile*>(strip + layout.tileOffset(t));
        const auto& scales =
            *reinterpret_cast<const StripScales*>(strip + layout.scalesOffset(t / layout.tilesPerGroup));
        const float scale = halfToFloat(scales.half[row]) * x[t].scale[m % kTileRows];
        sum = std::fmaf(static_cast<float>(dot(tile, row, x[t], m % kTileRows)), scale, sum);
      }
      args.y[static_cast<int64_t>(m) * args.n + n] = args.bias ? sum + args.bias[n] : sum;
    }
  }
}

}  // namespace

void scalarMatmulInt8(const QuantMatmulArgs& args) { matmul<Int8Tile>(args, WeightType::kInt8); }
void scalarMatmulInt4(const QuantMatmulArgs& args) { matmul<Int4Tile>(args, WeightType::kInt4); }

float scalarRoundingError(const float* weights, int count, float scale, QuantRange range) {
  const float inverse = inverseScale(scale);
  float lanes[kTreeLanes] = {};
  for (int i = 0; i < count; i++) {
    const float q = roundWeight(weights[i], inverse, range);
    const float error = weights[i] - q * scale;
    lanes[i % kTreeLanes] = lanes[i % kTreeLanes] + error * error;
  }
  return treeSum(lanes);
}

void scalarQuantizeRows(ActivationTile* out, const float* x, int rows, int k) {
  const int tiles = (k + kTileColumns - 1) / kTileColumns;
  for (int t = 0; t < tiles; t++) {
    ActivationTile& tile = out[t];
    const int columns = std::min(kTileColumns, k - t * kTileColumns);
    for (int r = 0; r < kTileRows; r++) {
      float group[kTileColumns] = {};
      if (r < rows) std::copy_n(x + static_cast<int64_t>(r) * k + t * kTileColumns, columns, group);
      const ActivationScale scale = activationScale(largestMagnitude(group, kTileColumns));
      int sums[2] = {};
      for (int c = 0; c < kTileColumns; c++) {
        const int q = scale.inverse == 0.0f ? 0 : roundToInt(group[c] * scale.inverse);
        tile.values[c / kQuad][r][c % kQuad] = static_cast<int8_t>(q);
        sums[c % kQuad / 2] += q;
      }
      for (int i = 0; i < 2; i++) tile.offset[r][i] = static_cast<int16_t>(-kInt4Offset * sums[i]);
      tile.scale[r] = scale.scale;
    }
  }
}

void scalarQuantizeHead(int8_t* out, uint16_t* scale, const float* in, int headDim) {
  const HeadScale head = headScale(largestMagnitude(in, headDim));
  *scale = head.half;
  for (int d = 0; d < headDim; d++) {
    const float q = head.inverse == 0.0f ? 0.0f : in[d] * head.inverse;
    out[d] = static_cast<int8_t>(roundToInt(std::min(std::max(q, -127.0f), 127.0f)));
  }
}

}  // namespace glm_relay
