// Float matrix product over strips of 32 output rows (kernels.h). Lanes are output rows and each sum
// runs over k in ascending order, so the result equals scalar/ whatever the tile.
//
// Up to 2 activation rows: all 32 lanes of a strip at once over the whole of K, one sequential stream
// of weights, limited by memory. More rows: tiles of 6 rows x 16 lanes (12 sums in registers), K in
// chunks whose weights stay in L1 while all rows pass over them; the sums wait in `sums` between
// chunks, which changes no bit because a float32 survives memory unrounded.
#include <algorithm>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"

namespace glm_relay {

namespace {

constexpr int kRowBlock = 48;  // rows that share one pass over a strip: 6 KB of sums
constexpr int kKChunk = 256;   // 16 KB of two-byte weights per strip
// Prefetch distance in bytes; without it one thread reached about two thirds of the read bandwidth.
constexpr int kPrefetchBytes = 2048;

// Rows x Vectors*8 lanes of one strip over k in [0, kCount).
template <DType Type, int Rows, int Vectors>
inline void tile(float* sums, const float* x, int64_t xStride, const uint8_t* weights, int kCount,
                 bool prefetch) {
  constexpr size_t kRowBytes = kStripRows * Stored<Type>::kBytes;
  __m256 sum[Rows][Vectors];
  for (int r = 0; r < Rows; r++) {
    for (int v = 0; v < Vectors; v++) sum[r][v] = _mm256_loadu_ps(sums + r * kStripRows + v * 8);
  }
  for (int k = 0; k < kCount; k++) {
    const uint8_t* row = weights + k * kRowBytes;
    if (prefetch) {
      _mm_prefetch(reinterpret_cast<const char*>(row + kPrefetchBytes), _MM_HINT_T0);
      if (kRowBytes > 64) {
        _mm_prefetch(reinterpret_cast<const char*>(row + kPrefetchBytes + 64), _MM_HINT_T0);
      }
    }
    __m256 w[Vectors];
    for (int v = 0; v < Vectors; v++) w[v] = load8<Type>(row + v * 8 * Stored<Type>::kBytes);
    for (int r = 0; r < Rows; r++) {
      const __m256 xk = _mm256_broadcast_ss(x + r * xStride + k);
      for (int v = 0; v < Vectors; v++) sum[r][v] = _mm256_fmadd_ps(xk, w[v], sum[r][v]);
    }
  }
  for (int r = 0; r < Rows; r++) {
    for (int v = 0; v < Vectors; v++) _mm256_storeu_ps(sums + r * kStripRows + v * 8, sum[r][v]);
  }
}

// Both halves of a strip for `Rows` rows; the first rows over a chunk prefetch the next one.
template <DType Type, int Rows>
inline void halves(float* sums, const float* x, int64_t xStride, const uint8_t* weights, int kCount,
                   bool prefetch) {
  if (prefetch) {
    tile<Type, Rows, 2>(sums, x, xStride, weights, kCount, true);
  } else {
    tile<Type, Rows, 2>(sums, x, xStride, weights, kCount, false);
  }
  tile<Type, Rows, 2>(sums + 16, x, xStride, weights + 16 * Stored<Type>::kBytes, kCount, false);
}

template <DType Type>
void manyRows(float* sums, const float* x, int rows, int64_t k, const uint8_t* weights) {
  for (int64_t k0 = 0; k0 < k; k0 += kKChunk) {
    const int kCount = static_cast<int>(std::min<int64_t>(kKChunk, k - k0));
    const uint8_t* chunk = weights + k0 * kStripRows * Stored<Type>::kBytes;
    int r = 0;
    for (; r + 6 <= rows; r += 6) {
      halves<Type, 6>(sums + r * kStripRows, x + r * k + k0, k, chunk, kCount, r == 0);
    }
    float* rest = sums + r * kStripRows;
    const float* xRest = x + r * k + k0;
    switch (rows - r) {
      case 5:
        halves<Type, 5>(rest, xRest, k, chunk, kCount, r == 0);
        break;
      case 4:
        halves<Type, 4>(rest, xRest, k, chunk, kCount, r == 0);
        break;
      case 3:
        halves<Type, 3>(rest, xRest, k, chunk, kCount, r == 0);
        break;
      case 2:
        tile<Type, 2, 4>(rest, xRest, k, chunk, kCount, false);
        break;
      case 1:
        tile<Type, 1, 4>(rest, xRest, k, chunk, kCount, false);
        break;
      default:
        break;
    }
  }
}

}  // namespace

template <DType Type>
void avx2Matmul(const MatmulArgs& args) {
  const int64_t k = args.k;
  alignas(32) float sums[kRowBlock * kStripRows];
  for (int strip = args.stripBegin; strip < args.stripEnd; strip++) {
    const uint8_t* weights = static_cast<const uint8_t*>(args.packed) +
                             strip * k * kStripRows * static_cast<int64_t>(Stored<Type>::kBytes);
    const int n0 = strip * kStripRows;
    const int nCount = std::min(kStripRows, args.n - n0);
    for (int m0 = 0; m0 < args.rows; m0 += kRowBlock) {
      const int rows = std::min(kRowBlock, args.rows - m0);
      const float* x = args.x + m0 * k;
      setZero(sums, rows * kStripRows);
      if (rows == 1) {
        tile<Type, 1, 4>(sums, x, k, weights, args.k, true);
      } else if (rows == 2) {
        tile<Type, 2, 4>(sums, x, k, weights, args.k, true);
      } else {
        manyRows<Type>(sums, x, rows, k, weights);
      }
      for (int r = 0; r < rows; r++) {
        float* y = args.y + static_cast<int64_t>(m0 + r) * args.n + n0;
        const float* sum = sums + r * kStripRows;
        for (int n = 0; n < nCount; n++) y[n] = args.bias ? sum[n] + args.bias[n0 + n] : sum[n];
      }
    }
  }
}

template void avx2Matmul<DType::kFloat32>(const MatmulArgs&);
template void avx2Matmul<DType::kFloat16>(const MatmulArgs&);
template void avx2Matmul<DType::kBfloat16>(const MatmulArgs&);

}  // namespace glm_relay
