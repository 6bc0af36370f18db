#include "quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/canon_math.h"
#include "quant/finite.h"

namespace glm_relay {

namespace {

// Values reach from -limit - 1 (4 bits) or -limit (8 bits, whose products need the symmetry) to limit.
struct Range {
  float low;
  float high;
  float top;  // the magnitude that a search gives to the largest weight, more or less
};

Range rangeOf(WeightType type) {
  if (type == WeightType::kInt4) return {-8.0f, 7.0f, 8.0f};
  return {-127.0f, 127.0f, 127.0f};
}

// The search tries to give the largest weight the values top * (1 + i / 32): smaller ones coarsen the
// rest, larger ones clip the largest.
constexpr int kSearchBegin = -8;
constexpr int kSearchEnd = 4;

// To the nearest integer, ties to even, for |x| < 2^22; as an expression of additions, which every
// compiler turns into vector code.
inline float roundToInteger(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

inline float clamped(float x, const Range& range) {
  x = x < range.low ? range.low : x;
  return x > range.high ? range.high : x;
}

inline float inverseOf(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

// The sum over a group of (w - q * scale)^2, in 16 lanes. `count` is a multiple of 32.
float squaredError(const float* weights, int count, float scale, const Range& range) {
  const float inverse = inverseOf(scale);
  float lanes[kTreeLanes] = {};
  for (int i = 0; i < count; i += kTreeLanes) {
    for (int j = 0; j < kTreeLanes; j++) {
      const float q = clamped(roundToInteger(weights[i + j] * inverse), range);
      const float error = weights[i + j] - q * scale;
      lanes[j] = lanes[j] + error * error;
    }
  }
  return treeSum(lanes);
}

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
Chosen chooseScale(const float* weights, int count, const Range& range, ScaleChoice choice) {
  const Extremes extremes = extremesOf(weights, count);
  const auto tried = [&](float scale) -> Chosen {
    const uint16_t half = floatToHalf(scale);
    return {half, squaredError(weights, count, halfToFloat(half), range)};
  };
  Chosen best = tried(extremes.magnitude() / range.high);
  if (choice == ScaleChoice::kAbsMax || !std::isfinite(halfToFloat(best.half))) return best;
  // Negative scales give the dominant weight a negative value: 4-bit values reach one further there.
  for (int i = kSearchBegin; i <= kSearchEnd; i++) {
    const float value = range.top * (1.0f + static_cast<float>(i) * 0.03125f);
    const Chosen candidate = tried(-extremes.dominant() / value);
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
      values_(static_cast<size_t>(kStripRows) * columns_) {}

RoundingError StripQuantizer::quantize(uint8_t* out, int strip) {
  RoundingError error;
  const int rows = std::min(kStripRows, matrix_.n - strip * kStripRows);
  std::fill(values_.begin(), values_.end(), static_cast<int8_t>(0));
  const size_t rowBytes = static_cast<size_t>(matrix_.k) * dtypeBytes(matrix_.dtype);
  for (int row = 0; row < rows; row++) {
    const int n = strip * kStripRows + row;
    const uint8_t* stored = matrix_.data + n * rowBytes;
    requireFinite(stored, matrix_.dtype, matrix_.k, n, matrix_.k);
    kernels_.widen[static_cast<int>(matrix_.dtype)](weights_.data(), stored, matrix_.k);
    quantizeRow(out, row, error);
  }
  for (int tile = 0; tile < layout_.tiles; tile++) pack(out, tile);
  return error;
}

// Rounds the row in weights_: its scales go to the strip, its values to values_.
void StripQuantizer::quantizeRow(uint8_t* strip, int row, RoundingError& error) {
  const Range range = rangeOf(matrix_.format.type);
  const int groupColumns = layout_.tilesPerGroup * kTileColumns;
  for (int group = 0; group < layout_.groups(); group++) {
    const int begin = group * groupColumns;
    const int count = std::min(groupColumns, columns_ - begin);
    const float* weights = weights_.data() + begin;
    const Chosen chosen = chooseScale(weights, count, range, matrix_.format.scales);
    const float scale = halfToFloat(chosen.half);
    if (!std::isfinite(scale)) {
      throw WeightError("weights of more than " + std::to_string(static_cast<int>(range.high)) +
                        " * 65504 are too large for FP16 scales");
    }
    reinterpret_cast<StripScales*>(strip + layout_.scalesOffset(group))->half[row] = chosen.half;

    const float inverse = inverseOf(scale);
    int8_t* values = values_.data() + static_cast<size_t>(row) * columns_ + begin;
    double squares = 0.0;
    for (int i = 0; i < count; i++) {
      values[i] = static_cast<int8_t>(clamped(roundToInteger(weights[i] * inverse), range));
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
