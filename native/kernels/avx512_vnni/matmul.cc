// Float matrix product over strips of 32 output rows (kernels.h). Lanes are output rows and each sum
// runs over k in ascending order, so the result equals scalar/ whatever the tile.
//
// Up to 12 activation rows x 32 lanes at a time: 24 sums in registers. With more rows K is cut into
// chunks whose weights stay in L1 while all rows pass over them; the sums wait in `sums` between chunks,
// which changes no bit because a float32 survives memory unrounded.
#include <algorithm>

#include "kernels/avx512_vnni/avx512.h"
#include "kernels/avx512_vnni/floats.h"
#include "kernels/with_count.h"

namespace glm_relay {

namespace {

constexpr int kLanes = 16;
constexpr int kVectors = kStripRows / kLanes;
constexpr int kRows = 12;
constexpr int kRowBlock = 48;  // rows that share one pass over a strip: 6 KB of sums
constexpr int kKChunk = 256;   // 16 KB of two-byte weights per strip
// Prefetch distance in bytes.
constexpr int kPrefetchBytes = 2048;

// `Rows` rows x 32 lanes of one strip over k in [0, kCount).
template <DType Type, int Rows>
void tile(float* sums, const float* x, int64_t xStride, const uint8_t* weights, int kCount, bool prefetch) {
  constexpr size_t kRowBytes = kStripRows * dtypeBytes(Type);
  __m512 sum[Rows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) sum[r][v] = _mm512_load_ps(sums + r * kStripRows + v * kLanes);
  }
  for (int k = 0; k < kCount; k++) {
    const uint8_t* row = weights + k * kRowBytes;
    if (prefetch) {
      for (size_t line = 0; line < kRowBytes; line += 64) __builtin_prefetch(row + kPrefetchBytes + line);
    }
    __m512 w[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) w[v] = load16<Type>(row + v * kLanes * dtypeBytes(Type));
#pragma GCC unroll 12
    for (int r = 0; r < Rows; r++) {
      const __m512 xk = _mm512_set1_ps(x[r * xStride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) sum[r][v] = _mm512_fmadd_ps(xk, w[v], sum[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) _mm512_store_ps(sums + r * kStripRows + v * kLanes, sum[r][v]);
  }
}

template <DType Type>
void rowBlock(float* sums, const float* x, int rows, int64_t k, const uint8_t* weights) {
  const int64_t chunk = rows <= kRows ? k : kKChunk;
  for (int64_t k0 = 0; k0 < k; k0 += chunk) {
    const int kCount = static_cast<int>(std::min<int64_t>(chunk, k - k0));
    const uint8_t* part = weights + k0 * kStripRows * static_cast<int64_t>(dtypeBytes(Type));
    for (int r = 0; r < rows; r += kRows) {
      withCount<kRows>(std::min(kRows, rows - r), [&](auto count) {
        tile<Type, count>(sums + r * kStripRows, x + r * k + k0, k, part, kCount, r == 0);
      });
    }
  }
}

}  // namespace

template <DType Type>
void avx512Matmul(const MatmulArgs& args) {
  const int64_t k = args.k;
  alignas(64) float sums[kRowBlock * kStripRows];
  for (int strip = args.stripBegin; strip < args.stripEnd; strip++) {
    const uint8_t* weights = static_cast<const uint8_t*>(args.packed) +
                             strip * k * kStripRows * static_cast<int64_t>(dtypeBytes(Type));
    const int n0 = strip * kStripRows;
    const int nCount = std::min(kStripRows, args.n - n0);
    for (int m0 = 0; m0 < args.rows; m0 += kRowBlock) {
      const int rows = std::min(kRowBlock, args.rows - m0);
      for (int i = 0; i < rows * kStripRows; i++) sums[i] = 0.0f;
      rowBlock<Type>(sums, args.x + m0 * k, rows, k, weights);
      for (int r = 0; r < rows; r++) {
        float* y = args.y + static_cast<int64_t>(m0 + r) * args.n + n0;
        const float* sum = sums + r * kStripRows;
        for (int n = 0; n < nCount; n++) y[n] = args.bias ? sum[n] + args.bias[n0 + n] : sum[n];
      }
    }
  }
}

template void avx512Matmul<DType::kFloat32>(const MatmulArgs&);
template void avx512Matmul<DType::kFloat16>(const MatmulArgs&);
template void avx512Matmul<DType::kBfloat16>(const MatmulArgs&);

}  // namespace glm_relay
