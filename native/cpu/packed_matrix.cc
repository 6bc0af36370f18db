#include "cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/load_strips.h"
#include "quant/finite.h"

namespace glm_relay {

namespace {

// So many columns of a source row are one cache line of two-byte weights.
constexpr int kColumnBlock = 32;

// Interleaves `count` rows of a strip; the others stay zero.
template <class Bits>
void packStrip(uint8_t* out, const uint8_t* const* rows, int count, int64_t k) {
  for (int64_t k0 = 0; k0 < k; k0 += kColumnBlock) {
    const int64_t kEnd = std::min<int64_t>(k, k0 + kColumnBlock);
    for (int lane = 0; lane < count; lane++) {
      const uint8_t* row = rows[lane];
      for (int64_t i = k0; i < kEnd; i++) {
        std::memcpy(out + (i * kStripRows + lane) * sizeof(Bits), row + i * sizeof(Bits), sizeof(Bits));
      }
    }
  }
}

}  // namespace

uint64_t PackedMatrix::packedBytes(int n, int k, DType dtype) {
  const uint64_t strips = (n + kStripRows - 1) / kStripRows;
  return strips * kStripRows * static_cast<uint64_t>(k) * dtypeBytes(dtype);
}

PackedMatrix::PackedMatrix(const HostMatrix& matrix, ThreadPool& pool) : dtype_(matrix.dtype) {
  n = matrix.n;
  k = matrix.k;
  bytes = packedBytes(n, k, dtype_);
  const auto memory = std::make_shared<HostMemory>(bytes, HostMemory::kStreamed);
  packed = std::shared_ptr<const uint8_t>(memory, memory->data());
  loadStrips(matrix, pool, [&](int strip, int) {
    uint8_t* out = memory->data() + strip * kStripRows * matrix.rowBytes();
    const int first = strip * kStripRows;
    const int count = std::min(kStripRows, n - first);
    const uint8_t* rows[kStripRows];
    std::vector<uint8_t> joined(matrix.sideBySide ? kStripRows * matrix.rowBytes() : 0);
    for (int i = 0; i < count; i++) {
      uint8_t* scratch = matrix.sideBySide ? joined.data() + i * matrix.rowBytes() : nullptr;
      rows[i] = matrix.row(first + i, scratch);
      requireFinite(rows[i], dtype_, k, first + i, k);
    }
    if (dtypeBytes(dtype_) == 2) {
      packStrip<uint16_t>(out, rows, count, k);
    } else {
      packStrip<uint32_t>(out, rows, count, k);
    }
  });
}

PackedMatrix::PackedMatrix(const PackedBytes& matrix) : dtype_(matrix.dtype) {
  n = matrix.n;
  k = matrix.k;
  bytes = matrix.bytes;
  packed = matrix.data;
}

}  // namespace glm_relay
