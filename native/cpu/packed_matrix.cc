#include "cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>

#include "cpu/load_strips.h"
#include "quant/finite.h"

namespace glm_relay {

namespace {

// So many columns of a source row are one cache line of two-byte weights.
constexpr int kColumnBlock = 32;

// Interleaves rows [0, rows) of a strip; the others stay zero.
template <class Bits>
void packStrip(uint8_t* out, const uint8_t* in, int rows, int64_t k) {
  for (int64_t k0 = 0; k0 < k; k0 += kColumnBlock) {
    const int64_t kEnd = std::min<int64_t>(k, k0 + kColumnBlock);
    for (int lane = 0; lane < rows; lane++) {
      const uint8_t* row = in + lane * k * static_cast<int64_t>(sizeof(Bits));
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

PackedMatrix::PackedMatrix(const HostMatrix& matrix, ThreadPool& pool)
    : dtype_(matrix.dtype), memory_(packedBytes(matrix.n, matrix.k, matrix.dtype), HostMemory::kStreamed) {
  n = matrix.n;
  k = matrix.k;
  bytes = packedBytes(n, k, dtype_);
  const uint64_t rowBytes = static_cast<uint64_t>(k) * dtypeBytes(dtype_);
  loadStrips(matrix, pool, [&](int strip, int) {
    uint8_t* out = memory_.data() + strip * kStripRows * rowBytes;
    const uint8_t* in = matrix.data + strip * kStripRows * rowBytes;
    const int rows = std::min(kStripRows, n - strip * kStripRows);
    requireFinite(in, dtype_, static_cast<int64_t>(rows) * k, static_cast<int64_t>(strip) * kStripRows, k);
    if (dtypeBytes(dtype_) == 2) {
      packStrip<uint16_t>(out, in, rows, k);
    } else {
      packStrip<uint32_t>(out, in, rows, k);
    }
  });
}

}  // namespace glm_relay
