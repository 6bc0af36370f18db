// Float matrix product over strips of 32 output rows (kernels.h). Lanes are output rows and each sum
// runs over k in ascending order, so the result equals scalar/ whatever the tile.
//
// Up to 2 activation rows: all 32 lanes of a strip at once over the whole of K, one sequential stream
// of weights, limited by memory. More rows: tiles of 6 rows x 16 lanes (24 of the 32 registers are
// sums), K in chunks whose weights stay in L1 while all rows pass over them; the sums wait in `sums`
// between chunks, which changes no bit because a float32 survives memory unrounded.
#include <algorithm>

#include "kernels/neon/lanes.h"
#include "kernels/neon/neon.h"
#include "kernels/with_count.h"

namespace glm_relay {

namespace {

constexpr int kWideRows = 2;   // rows that all lanes of a strip pass over at once
constexpr int kRows = 6;       // rows of a tile
constexpr int kRowBlock = 48;  // rows that share one pass over a strip: 6 KB of sums
constexpr int kKChunk = 256;   // 16 KB of two-byte weights per strip
// Prefetch distance in bytes.
constexpr int kPrefetchBytes = 2048;

// Rows x Vectors*4 lanes of one strip over k in [0, kCount).
template <DType Type, int Rows, int Vectors>
void tile(float* sums, const float* x, int64_t xStride, const uint8_t* weights, int kCount, bool prefetch) {
  constexpr size_t kRowBytes = kStripRows * Stored<Type>::kBytes;
  float32x4_t sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; v++) sum[r][v] = vld1q_f32(sums + r * kStripRows + v * 4);
  }
  for (int k = 0; k < kCount; k++) {
    const uint8_t* row = weights + k * kRowBytes;
    if (prefetch) {
      for (size_t i = 0; i < kRowBytes; i += 64) __builtin_prefetch(row + kPrefetchBytes + i);
    }
    float32x4_t w[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; v++) w[v] = load4<Type>(row + v * 4 * Stored<Type>::kBytes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
      const float xk = x[r * xStride + k];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; v++) sum[r][v] = vfmaq_n_f32(sum[r][v], w[v], xk);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; v++) vst1q_f32(sums + r * kStripRows + v * 4, sum[r][v]);
  }
}

// A strip for `Rows` rows: at once, or one half after the other.
template <DType Type, int Rows>
void strip(float* sums, const float* x, int64_t xStride, const uint8_t* weights, int kCount, bool prefetch) {
  if constexpr (Rows <= kWideRows) {
    tile<Type, Rows, 8>(sums, x, xStride, weights, kCount, prefetch);
  } else {
    tile<Type, Rows, 4>(sums, x, xStride, weights, kCount, prefetch);
    tile<Type, Rows, 4>(sums + 16, x, xStride, weights + 16 * Stored<Type>::kBytes, kCount, false);
  }
}

template <DType Type>
void rowBlock(float* sums, const float* x, int rows, int64_t k, const uint8_t* weights) {
  const int64_t chunk = rows <= kWideRows ? k : kKChunk;
  for (int64_t k0 = 0; k0 < k; k0 += chunk) {
    const int kCount = static_cast<int>(std::min<int64_t>(chunk, k - k0));
    const uint8_t* part = weights + k0 * kStripRows * static_cast<int64_t>(Stored<Type>::kBytes);
    for (int r = 0; r < rows; r += kRows) {
      withCount<kRows>(std::min(kRows, rows - r), [&](auto count) {
        strip<Type, count>(sums + r * kStripRows, x + r * k + k0, k, part, kCount, r == 0);
      });
    }
  }
}

}  // namespace

template <DType Type>
void neonMatmul(const MatmulArgs& args) {
  const int64_t k = args.k;
  alignas(16) float sums[kRowBlock * kStripRows];
  for (int strip = args.stripBegin; strip < args.stripEnd; strip++) {
    const uint8_t* weights = static_cast<const uint8_t*>(args.packed) +
                             strip * k * kStripRows * static_cast<int64_t>(Stored<Type>::kBytes);
    const int n0 = strip * kStripRows;
    const int nCount = std::min(kStripRows, args.n - n0);
    for (int m0 = 0; m0 < args.rows; m0 += kRowBlock) {
      const int rows = std::min(kRowBlock, args.rows - m0);
      setZero(sums, rows * kStripRows);
      rowBlock<Type>(sums, args.x + m0 * k, rows, k, weights);
      for (int r = 0; r < rows; r++) {
        float* y = args.y + static_cast<int64_t>(m0 + r) * args.n + n0;
        const float* sum = sums + r * kStripRows;
        for (int n = 0; n < nCount; n++) y[n] = args.bias ? sum[n] + args.bias[n0 + n] : sum[n];
      }
    }
  }
}

template void neonMatmul<DType::kFloat32>(const MatmulArgs&);
template void neonMatmul<DType::kFloat16>(const MatmulArgs&);
template void neonMatmul<DType::kBfloat16>(const MatmulArgs&);

}  // namespace glm_relay
