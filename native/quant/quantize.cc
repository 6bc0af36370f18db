#include "quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/quant_math.h"
#include "quant/finite.h"

namespace glm_relay {

namespace {

// The search tries to give the largest weight the values top * (1 + i / 32), where top is the magnitude of
// the lowest value: smaller ones coarsen the rest, larger ones clip the largest.
constexpr int kSearchBegin = -8;
constexpr int kSearchEnd = 4;

struct Extremes {
  float largest;   // of all weights and 0
  float smallest;  // of all weights and 0
  float magnitude() const { return std::max(largest, -smallest); }
  // The weight of the largest magnitude, the positive one of two.
  float dominant() const { return largest >= -smallest ? largest : smallest; }
};

Extremes extremesOf(const float* weights, int count) {
  float high[kTreeLanes] = {};
  float low[kTreeLanes] = {};
  for (int i = 0; i < count; i += kTreeLanes) {
    for (int j = 0; j < kTreeLanes; j++) {
      const float w = weights[i + j];
      high[j] = w > high[j] ? w : high[j];
      low[j] = w < low[j] ? w : low[j];
    }
  }
  return {*std::max_element(high, high + kTreeLanes), *std::min_element(low, low + kTreeLanes)};
}

struct Chosen {
  uint16_t half;
  float error;
};

// The scale of a group by the format's rule. An infinite one means that the weights are too large.
Chosen chooseScale(const KernelTable& kernels, const float* weights, int count, const WeightFormat& format) {
  const QuantRange range = quantRange(format.type);
  const Extremes extremes = extremesOf(weights, count);
  const auto tried = [&](float scale) -> Chosen {
    const uint16_t half = floatToHalf(scale);
    return {half, kernels.roundingError(weights, count, halfToFloat(half), range)};
  };
  Chosen best = tried(extremes.magnitude() / range.high);
  if (format.scales == ScaleChoice::kAbsMax || !std::isfinite(halfToFloat(best.half))) return best;
  // Negative scales give the dominant weight a negative value: 4-bit values reach one further there.
  for (int i = kSearchBegin; i <= kSearchEnd; i++) {
    const float value = range.low * (1.0f + static_cast<float>(i) * 0.03125f);
    const Chosen candidate = tried(extremes.dominant() / value);
    if (candidate.error < best.error) best = candidate;
  }
  return best;
}

}  // namespace

StripQuantizer::StripQuantizer(const HostMatrix& matrix, const KernelTable& kernels)
    : matrix_(matrix),
      kernels_(kernels),
      layout_(matrix.n, matrix.k, matrix.format),
      columns_(layout_.tiles * kTileColumns),
      weights_(columns_),
      values_(static_cast<size_t>(kStripRows) * columns_),
      joined_(matrix.sideBySide ? matrix.rowBytes() : 0) {}

RoundingError StripQuantizer::quantize(uint8_t* out, int strip) {
  RoundingError error;
  const int rows = std::min(kStripRows, matrix_.n - strip * kStripRows);
  std::fill(values_.begin(), values_.end(), static_cast<int8_t>(0));
  for (int row = 0; row < rows; row++) {
    const int n = strip * kStripRows + row;
    const uint8_t* stored = matrix_.row(n, joined_.data());
    requireFinite(stored, matrix_.dtype, matrix_.k, n, matrix_.k);
    kernels_.widen[static_cast<int>(matrix_.dtype)](weights_.data(), stored, matrix_.k);
    quantizeRow(out, row, error);
  }
  for (int tile = 0; tile < layout_.tiles; tile++) pack(out, tile);
  return error;
}

// Rounds the row in weights_: its scales go to the strip, its values to values_.
void StripQuantizer::quantizeRow(uint8_t* strip, int row, RoundingError& error) {
  const QuantRange range = quantRange(matrix_.format.type);
  const int groupColumns = layout_.tilesPerGroup * kTileColumns;
  for (int group = 0; group < layout_.groups(); group++) {
    const int begin = group * groupColumns;
    const int count = std::min(groupColumns, columns_ - begin);
    const float* weights = weights_.data() + begin;
    const Chosen chosen = chooseScale(kernels_, weights, count, matrix_.format);
    const float scale = halfToFloat(chosen.half);
    if (!std::isfinite(scale)) {
      throw WeightError("weights of more than " + std::to_string(static_cast<int>(range.high)) +
                        " * 65504 are too large for FP16 scales");
    }
    reinterpret_cast<StripScales*>(strip + layout_.scalesOffset(group))->half[row] = chosen.half;

    const float inverse = inverseScale(scale);
    int8_t* values = values_.data() + static_cast<size_t>(row) * columns_ + begin;
    double squares = 0.0;
    for (int i = 0; i < count; i++) {
      values[i] = static_cast<int8_t>(roundWeight(weights[i], inverse, range));
      squares += static_cast<double>(weights[i]) * weights[i];
    }
    error.squaredError += chosen.error;
    error.squaredWeight += squares;
  }
}

void StripQuantizer::pack(uint8_t* strip, int tile) const {
  const auto quadOf = [&](int row, int quad) {
    uint32_t bytes;
    std::memcpy(&bytes, values_.data() + static_cast<size_t>(row) * columns_ + tile * kTileColumns + quad * 4,
                sizeof(bytes));
    return bytes;
  };
  uint8_t* out = strip + layout_.tileOffset(tile);
  if (matrix_.format.type == WeightType::kInt8) {
    auto& int8 = *reinterpret_cast<Int8Tile*>(out);
    for (int row = 0; row < kStripRows; row++) {
      for (int quad = 0; quad < kTileColumns / kQuad; quad++) {
        const uint32_t bytes = quadOf(row, quad);
        std::memcpy(int8.values[row / 8][quad][row % 8], &bytes, sizeof(bytes));
      }
    }
    return;
  }
  // q + 8 of a two's complement nibble is its top bit turned over.
  const auto nibbles = [&](int row, int quad) { return (quadOf(row, quad) & 0x0f0f0f0fu) ^ 0x08080808u; };
  auto& int4 = *reinterpret_cast<Int4Tile*>(out);
  for (int half = 0; half < 2; half++) {
    for (int quad = 0; quad < kTileColumns / kQuad; quad++) {
      for (int j = 0; j < 8; j++) {
        const uint32_t bytes = nibbles(16 * half + j, quad) | nibbles(16 * half + 8 + j, quad) << 4;
        std::memcpy(int4.values[half][quad][j], &bytes, sizeof(bytes));
      }
    }
  }
}

}  // namespace glm_relay
