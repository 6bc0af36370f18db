#include "cuda/pack_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "cpu/load_strips.h"
#include "kernels/half.h"
#include "quant/finite.h"
#include "quant/quantize.h"

namespace glm_relay::cuda {

namespace {

// A power of two that brings the magnitude near 2^exponent, below it; 1 for zero.
float factorTo(float magnitude, int exponent) {
  if (magnitude == 0.0f) return 1.0f;
  int of = 0;
  std::frexp(magnitude, &of);
  return std::ldexp(1.0f, std::clamp(exponent - of, -100, 100));
}

// FP16 ends at 2^16; values stay below 2^15.
constexpr int kTopExponent = 15;

// What kernels take the 1 of a rounded value for.
constexpr float kIntegerUnit = 16777216.0f;  // 2^24

// Writes rows of one matrix to their places.
class BlockWriter {
 public:
  BlockWriter(const WeightLayout& layout, WeightType type, std::vector<uint8_t>& blocks)
      : layout_(layout), type_(type), blocks_(blocks) {}

  // A whole row of FP16 values.
  void row(int n, const uint16_t* values, int count) {
    for (int k = 0; k < count; k++) {
      const int within = k % kStepColumns;
      const int step = k % kBlockColumns / kStepColumns;
      const int value = within / 8 * 2 + within % 2;
      uint8_t* to = vector(n, k / kBlockColumns, step / 2, within % 8 / 2);
      std::memcpy(to + (step % 2 * 4 + value) * 2, &values[k], 2);
    }
  }

  // Four columns from `k` on, a multiple of 4, of a row of rounded values: q and its offset in a byte each.
  void quad(int n, int k, const uint8_t (&values)[kQuad]) {
    const int within = k % kStepColumns;
    const int step = k % kBlockColumns / kStepColumns;
    for (int pair = 0; pair < 2; pair++) {
      const int lane = within % 8 / 2 + pair;
      const int value = within / 8 * 2;
      const uint8_t* two = values + 2 * pair;
      if (type_ == WeightType::kInt4) {
        uint8_t* word = vector(n, k / kBlockColumns, 0, lane) + step / 2 * 4;
        for (int i = 0; i < 2; i++) {
          const int nibble = kNibbleOfValue[step % 2][value + i];
          word[nibble / 2] = static_cast<uint8_t>(word[nibble / 2] | two[i] << (nibble % 2 * 4));
        }
      } else {
        std::memcpy(vector(n, k / kBlockColumns, step / 4, lane) + step % 4 * 4 + value, two, 2);
      }
    }
  }

  void scale(int n, int columnBlock, int group, uint16_t half) {
    uint8_t* to = block(n, columnBlock) + blockDataBytes(type_);
    std::memcpy(to + (n % kBlockRows * layout_.groupsPerBlock + group) * 2, &half, 2);
  }

 private:
  uint8_t* block(int n, int columnBlock) {
    return blocks_.data() + n / kBlockRows * layout_.rowBlockBytes() +
           static_cast<size_t>(columnBlock) * layout_.blockBytes;
  }
  // Of the four lanes that have row n.
  uint8_t* vector(int n, int columnBlock, int index, int lane) {
    return block(n, columnBlock) + (index * 32 + n % kBlockRows * 4 + lane) * kVectorBytes;
  }

  const WeightLayout layout_;
  const WeightType type_;
  std::vector<uint8_t>& blocks_;
};

class Packer {
 public:
  Packer(int n, int k, const WeightFormat& format)
      : n_(n), k_(k), format_(format), layout_(n, k, format), writer_(layout_, format.type, out.blocks) {
    out.blocks.resize(layout_.bytes());
    out.rowScales.resize(n);
  }

  // Rows of float32, those of one strip.
  void stored(int strip, const float* rows) {
    std::vector<uint16_t> halves(k_);
    for (int i = 0; i < rowsOf(strip); i++) {
      const float* row = rows + static_cast<size_t>(i) * k_;
      float largest = 0.0f;
      for (int k = 0; k < k_; k++) largest = std::max(largest, std::fabs(row[k]));
      const float factor = factorTo(largest, kTopExponent);
      for (int k = 0; k < k_; k++) halves[k] = floatToHalf(row[k] * factor);
      put(strip, i, halves, factor);
    }
  }

  // A strip as quant/format.h has it.
  void rounded(int strip, const uint8_t* bytes) {
    const QuantLayout from(n_, k_, format_);
    for (int i = 0; i < rowsOf(strip); i++) {
      const auto scaleOf = [&](int group) {
        return halfToFloat(reinterpret_cast<const StripScales*>(bytes + from.scalesOffset(group))->half[i]);
      };
      float largest = 0.0f;
      for (int group = 0; group < from.groups(); group++)
        largest = std::max(largest, std::fabs(scaleOf(group)));
      const float factor = factorTo(largest, kTopExponent);
      const int n = strip * kStripRows + i;
      out.rowScales[n] = kIntegerUnit / factor;
      // Behind the last tile scales are zero.
      for (int tile = 0; tile < from.tiles; tile++) {
        for (int quad = 0; quad < kTileColumns / kQuad; quad++) {
          uint8_t values[kQuad];
          loadQuad(values, bytes + from.tileOffset(tile), i, quad);
          writer_.quad(n, tile * kTileColumns + quad * kQuad, values);
        }
      }
      const int columns = kBlockColumns / layout_.groupsPerBlock;
      for (int group = 0; group < layout_.columnBlocks * layout_.groupsPerBlock; group++) {
        const int tile = group * columns / kTileColumns;
        const float scale = tile < from.tiles ? scaleOf(tile / from.tilesPerGroup) : 0.0f;
        writer_.scale(n, group / layout_.groupsPerBlock, group % layout_.groupsPerBlock,
                      floatToHalf(scale * factor));
      }
    }
  }

  PackedWeights out;

 private:
  int rowsOf(int strip) const { return std::min(kStripRows, n_ - strip * kStripRows); }

  void put(int strip, int row, const std::vector<uint16_t>& values, float factor) {
    const int n = strip * kStripRows + row;
    writer_.row(n, values.data(), static_cast<int>(values.size()));
    out.rowScales[n] = 1.0f / factor;
  }

  // With their offset, 8 or 128.
  void loadQuad(uint8_t (&values)[kQuad], const uint8_t* tile, int row, int quad) const {
    const bool isInt4 = format_.type == WeightType::kInt4;
    const void* from = isInt4 ? static_cast<const void*>(
                                    reinterpret_cast<const Int4Tile*>(tile)->values[row / 16][quad][row % 8])
                              : reinterpret_cast<const Int8Tile*>(tile)->values[row / 8][quad][row % 8];
    uint32_t word = 0;
    std::memcpy(&word, from, sizeof(word));
    if (isInt4) {
      word = word >> (row % 16 < 8 ? 0 : 4) & 0x0f0f0f0fu;
    } else {
      word ^= 0x80808080u;
    }
    std::memcpy(values, &word, sizeof(word));
  }

  const int n_;
  const int k_;
  const WeightFormat format_;
  const WeightLayout layout_;
  BlockWriter writer_;
};

}  // namespace

PackedWeights packMatrix(const HostMatrix& matrix, const KernelTable& kernels, ThreadPool& pool) {
  Packer packer(matrix.n, matrix.k, matrix.format);
  if (matrix.format.type == WeightType::kStored) {
    loadStrips(matrix, pool, [&](int strip, int) {
      std::vector<float> rows(static_cast<size_t>(kStripRows) * matrix.k);
      std::vector<uint8_t> joined(matrix.sideBySide ? matrix.rowBytes() : 0);
      const int first = strip * kStripRows;
      for (int i = 0; i < std::min(kStripRows, matrix.n - first); i++) {
        const uint8_t* row = matrix.row(first + i, joined.data());
        requireFinite(row, matrix.dtype, matrix.k, first + i, matrix.k);
        kernels.widen[static_cast<int>(matrix.dtype)](rows.data() + static_cast<size_t>(i) * matrix.k, row,
                                                      matrix.k);
      }
      packer.stored(strip, rows.data());
    });
    return std::move(packer.out);
  }
  const QuantLayout layout(matrix.n, matrix.k, matrix.format);
  std::vector<std::optional<StripQuantizer>> quantizers(pool.threads());
  std::vector<RoundingError> errors(layout.strips);
  loadStrips(matrix, pool, [&](int strip, int thread) {
    if (!quantizers[thread]) quantizers[thread].emplace(matrix, kernels);
    std::vector<uint8_t> bytes(layout.stripBytes());
    errors[strip] = quantizers[thread]->quantize(bytes.data(), strip);
    packer.rounded(strip, bytes.data());
  });
  // In order, so that the sum is the same however the strips were shared out.
  for (const RoundingError& error : errors) packer.out.rounding.add(error);
  return std::move(packer.out);
}

PackedWeights packStrips(const PackedBytes& matrix, const KernelTable& kernels, ThreadPool& pool) {
  Packer packer(matrix.n, matrix.k, matrix.format);
  const int strips = (matrix.n + kStripRows - 1) / kStripRows;
  const size_t stripBytes = matrix.bytes / strips;
  pool.forEach(strips, [&](int64_t strip, int) {
    const uint8_t* bytes = matrix.data.get() + strip * stripBytes;
    if (matrix.format.type != WeightType::kStored) return packer.rounded(static_cast<int>(strip), bytes);
    std::vector<float> columns(static_cast<size_t>(kStripRows) * matrix.k);
    kernels.widen[static_cast<int>(matrix.dtype)](columns.data(), bytes,
                                                  static_cast<int64_t>(columns.size()));
    std::vector<float> rows(columns.size());
    for (int k = 0; k < matrix.k; k++) {
      for (int i = 0; i < kStripRows; i++) {
        rows[static_cast<size_t>(i) * matrix.k + k] = columns[static_cast<size_t>(k) * kStripRows + i];
      }
    }
    packer.stored(static_cast<int>(strip), rows.data());
  });
  packer.out.rounding = matrix.rounding;
  return std::move(packer.out);
}

}  // namespace glm_relay::cuda
