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

// Writes single values of one matrix to their places.
class BlockWriter {
 public:
  BlockWriter(const WeightLayout& layout, WeightType type, std::vector<uint8_t>& blocks)
      : layout_(layout), type_(type), blocks_(blocks) {}

  // A whole row: q of every column, or the bits of FP16 values.
  void row(int n, const uint16_t* values, int count) {
    for (int k = 0; k < count; k++) {
      const int within = k % kStepColumns;
      const int lane = n % kBlockRows * 4 + within % 8 / 2;
      const int value = within / 8 * 2 + within % 2;
      put(block(n, k / kBlockColumns), k % kBlockColumns / kStepColumns, lane, value, values[k]);
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

  void put(uint8_t* block, int step, int lane, int value, uint16_t bits) {
    const auto vector = [&](int index) { return block + (index * 32 + lane) * kVectorBytes; };
    if (type_ == WeightType::kInt4) {
      const int nibble = kNibbleOfValue[step % 2][value];
      uint8_t& byte = vector(0)[step / 2 * 4 + nibble / 2];
      byte = static_cast<uint8_t>(byte | (bits & 15u) << (nibble % 2 * 4));
    } else if (type_ == WeightType::kInt8) {
      vector(step / 4)[step % 4 * 4 + value] = static_cast<uint8_t>(bits);
    } else {
      std::memcpy(vector(step / 2) + (step % 2 * 4 + value) * 2, &bits, 2);
    }
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
    const int offset = format_.type == WeightType::kInt4 ? kInt4Offset : 128;
    const float top = format_.type == WeightType::kInt4 ? 8.0f : 127.0f;
    std::vector<uint16_t> values(layout_.paddedColumns());
    for (int i = 0; i < rowsOf(strip); i++) {
      const auto scaleOf = [&](int group) {
        return halfToFloat(reinterpret_cast<const StripScales*>(bytes + from.scalesOffset(group))->half[i]);
      };
      float largest = 0.0f;
      for (int group = 0; group < from.groups(); group++)
        largest = std::max(largest, std::fabs(scaleOf(group)));
      const float factor = factorTo(largest * top, kTopExponent);
      for (int k = 0; k < layout_.paddedColumns(); k++) {
        const int q = k < k_ ? valueOf(bytes + from.tileOffset(k / kTileColumns), i, k % kTileColumns) : 0;
        values[k] = static_cast<uint16_t>(q + offset);
      }
      put(strip, i, values, factor);
      const int columns = kBlockColumns / layout_.groupsPerBlock;
      for (int group = 0; group < layout_.columnBlocks * layout_.groupsPerBlock; group++) {
        const int tile = group * columns / kTileColumns;
        const float scale = tile < from.tiles ? scaleOf(tile / from.tilesPerGroup) : 0.0f;
        writer_.scale(strip * kStripRows + i, group / layout_.groupsPerBlock, group % layout_.groupsPerBlock,
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

  int valueOf(const uint8_t* tile, int row, int column) const {
    const int quad = column / kQuad;
    const int place = column % kQuad;
    if (format_.type == WeightType::kInt8) {
      return reinterpret_cast<const Int8Tile*>(tile)->values[row / 8][quad][row % 8][place];
    }
    const uint8_t byte = reinterpret_cast<const Int4Tile*>(tile)->values[row / 16][quad][row % 8][place];
    return (row % 16 < 8 ? byte & 15 : byte >> 4) - kInt4Offset;
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
