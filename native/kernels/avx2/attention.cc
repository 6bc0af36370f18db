// Streamed attention, equal to scalar/attention.cc. A key tile holds 16 keys side by side for each
// dimension, so the lanes of q . k are keys and each sum runs over dimensions in ascending order; the
// lanes of the output are dimensions and each sum runs over keys. A tile is widened once for all
// queries of the call.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"
#include "kernels/kv_tile.h"

namespace glm_relay {

namespace {

// Sums that a query carries from tile to tile, in the call's scratch memory.
struct Running {
  float* max;      // [queries]
  float* sums;     // [queries, 16]
  float* weights;  // [queries, 16]: first the scores of the tile at hand, then exp of them
};

inline __m256 widen8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// The 16 keys and the 16 values of a tile as float32, in the order in which they are stored.
template <KvType Type>
void widenTiles(float* keys, float* values, const uint8_t* keyTile, const uint8_t* valueTile, int headDim) {
  constexpr DType kStored = static_cast<DType>(Type);
  const int count = kKeyTile * headDim;  // a multiple of 16
  for (int i = 0; i < count; i += 8) {
    _mm256_storeu_ps(keys + i, load8<kStored>(keyTile + i * Stored<kStored>::kBytes));
    _mm256_storeu_ps(values + i, load8<kStored>(valueTile + i * Stored<kStored>::kBytes));
  }
}

template <>
void widenTiles<KvType::kInt8>(float* keys, float* values, const uint8_t* keyTile, const uint8_t* valueTile,
                               int headDim) {
  const uint8_t* keyScales = keyTile + kKeyTile * headDim;
  const __m256 scalesLow = load8<DType::kFloat16>(keyScales);
  const __m256 scalesHigh = load8<DType::kFloat16>(keyScales + 16);
  const int8_t* keyIn = reinterpret_cast<const int8_t*>(keyTile);
  for (int d = 0; d < headDim; d++) {
    const int at = d * kKeyTile;
    _mm256_storeu_ps(keys + at, _mm256_mul_ps(widen8(keyIn + at), scalesLow));
    _mm256_storeu_ps(keys + at + 8, _mm256_mul_ps(widen8(keyIn + at + 8), scalesHigh));
  }
  const int8_t* valueIn = reinterpret_cast<const int8_t*>(valueTile);
  for (int j = 0; j < kKeyTile; j++) {
    const float scale = KvTile<KvType::kInt8>::scale(valueTile, headDim, j);
    const int8_t* in = valueIn + j * headDim;
    float* out = values + j * headDim;
    int d = 0;
    for (; d + 8 <= headDim; d += 8) {
      _mm256_storeu_ps(out + d, _mm256_mul_ps(widen8(in + d), _mm256_set1_ps(scale)));
    }
    for (; d < headDim; d++) out[d] = static_cast<float>(in[d]) * scale;
  }
}

// scores[q][16] = scale * q . k for Queries queries at once: enough independent sums to hide the
// latency of the fused multiply-add.
template <int Queries>
void scoreQueries(float* scores, const AttentionQuery* queries, const float* keys, int headDim, float scale) {
  __m256 low[Queries];
  __m256 high[Queries];
  for (int i = 0; i < Queries; i++) low[i] = high[i] = _mm256_setzero_ps();
  for (int d = 0; d < headDim; d++) {
    const __m256 keysLow = _mm256_loadu_ps(keys + d * kKeyTile);
    const __m256 keysHigh = _mm256_loadu_ps(keys + d * kKeyTile + 8);
    for (int i = 0; i < Queries; i++) {
      const __m256 q = _mm256_broadcast_ss(queries[i].q + d);
      low[i] = _mm256_fmadd_ps(q, keysLow, low[i]);
      high[i] = _mm256_fmadd_ps(q, keysHigh, high[i]);
    }
  }
  const __m256 scale8 = _mm256_set1_ps(scale);
  for (int i = 0; i < Queries; i++) {
    _mm256_storeu_ps(scores + i * kKeyTile, _mm256_mul_ps(low[i], scale8));
    _mm256_storeu_ps(scores + i * kKeyTile + 8, _mm256_mul_ps(high[i], scale8));
  }
}

// out[d] = out[d] * correction + sum over the visible keys, ascending, of weight * value.
template <int Vectors>
void accumulate(float* out, const float* values, int headDim, const float* weights, int visible,
                float correction) {
  __m256 sum[Vectors];
  const __m256 correction8 = _mm256_set1_ps(correction);
  for (int v = 0; v < Vectors; v++) sum[v] = _mm256_mul_ps(_mm256_loadu_ps(out + v * 8), correction8);
  for (int j = 0; j < visible; j++) {
    const __m256 weight = _mm256_broadcast_ss(weights + j);
    for (int v = 0; v < Vectors; v++) {
      sum[v] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(values + j * headDim + v * 8), sum[v]);
    }
  }
  for (int v = 0; v < Vectors; v++) _mm256_storeu_ps(out + v * 8, sum[v]);
}

void accumulateHead(float* out, const float* values, int headDim, const float* weights, int visible,
                    float correction) {
  int d = 0;
  for (; d + 64 <= headDim; d += 64) {
    accumulate<8>(out + d, values + d, headDim, weights, visible, correction);
  }
  for (; d + 32 <= headDim; d += 32) {
    accumulate<4>(out + d, values + d, headDim, weights, visible, correction);
  }
  for (; d + 8 <= headDim; d += 8) {
    accumulate<1>(out + d, values + d, headDim, weights, visible, correction);
  }
  for (; d < headDim; d++) {
    float sum = out[d] * correction;
    for (int j = 0; j < visible; j++) sum = std::fmaf(weights[j], values[j * headDim + d], sum);
    out[d] = sum;
  }
}

// Turns the scores of one tile into weights and returns the factor for the sums so far.
float softmaxTile(const Running& running, int i, int visible) {
  float* weights = running.weights + i * kKeyTile;
  float* sums = running.sums + i * kTreeLanes;
  const __m256 hidden = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const __m256 low =
      _mm256_blendv_ps(hidden, _mm256_loadu_ps(weights), _mm256_castsi256_ps(firstLanes(visible)));
  const __m256 high =
      _mm256_blendv_ps(hidden, _mm256_loadu_ps(weights + 8), _mm256_castsi256_ps(firstLanes(visible - 8)));

  const __m256 eight = _mm256_max_ps(low, high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  const float tileMax = _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  const float newMax = ScalarLanes::larger(tileMax, running.max[i]);
  const float correction = canonExp<ScalarLanes>(running.max[i] - newMax);
  running.max[i] = newMax;

  const __m256 newMax8 = _mm256_set1_ps(newMax);
  const __m256 correction8 = _mm256_set1_ps(correction);
  const __m256 weightsLow = canonExp<Avx2Lanes>(_mm256_sub_ps(low, newMax8));
  const __m256 weightsHigh = canonExp<Avx2Lanes>(_mm256_sub_ps(high, newMax8));
  _mm256_storeu_ps(weights, weightsLow);
  _mm256_storeu_ps(weights + 8, weightsHigh);
  _mm256_storeu_ps(sums, _mm256_fmadd_ps(_mm256_loadu_ps(sums), correction8, weightsLow));
  _mm256_storeu_ps(sums + 8, _mm256_fmadd_ps(_mm256_loadu_ps(sums + 8), correction8, weightsHigh));
  return correction;
}

}  // namespace

template <KvType Type>
void avx2Attention(const AttentionArgs& args) {
  const int headDim = args.headDim;
  const int tileFloats = kKeyTile * headDim;
  float* keys = args.scratch;
  float* values = keys + tileFloats;
  const Running running = {values + tileFloats, values + tileFloats + kMaxQueries,
                           values + tileFloats + kMaxQueries * (1 + kTreeLanes)};

  int lastPosition = 0;
  for (int i = 0; i < args.queryCount; i++) {
    running.max[i] = -std::numeric_limits<float>::infinity();
    setZero(running.sums + i * kTreeLanes, kTreeLanes);
    setZero(args.queries[i].out, headDim);
    lastPosition = std::max(lastPosition, args.queries[i].position);
  }

  for (int tile = 0; tile <= lastPosition / kKeyTile; tile++) {
    const int tileBegin = tile * kKeyTile;
    const size_t offset = args.kv.tileOffset(tile);
    widenTiles<Type>(keys, values, args.kv.keys + offset, args.kv.values + offset, headDim);

    // Scores of queries that end before this tile are computed along and never looked at.
    int i = 0;
    for (; i + 4 <= args.queryCount; i += 4) {
      scoreQueries<4>(running.weights + i * kKeyTile, args.queries + i, keys, headDim, args.scale);
    }
    for (; i < args.queryCount; i++) {
      scoreQueries<1>(running.weights + i * kKeyTile, args.queries + i, keys, headDim, args.scale);
    }

    for (i = 0; i < args.queryCount; i++) {
      const int visible = std::min(kKeyTile, args.queries[i].position - tileBegin + 1);
      if (visible <= 0) continue;
      const float correction = softmaxTile(running, i, visible);
      accumulateHead(args.queries[i].out, values, headDim, running.weights + i * kKeyTile, visible,
                     correction);
    }
  }

  for (int i = 0; i < args.queryCount; i++) {
    const float sum = treeSum(running.sums + i * kTreeLanes);
    for (int d = 0; d < headDim; d++) args.queries[i].out[d] = args.queries[i].out[d] / sum;
  }
}

template void avx2Attention<KvType::kFloat32>(const AttentionArgs&);
template void avx2Attention<KvType::kFloat16>(const AttentionArgs&);
template void avx2Attention<KvType::kBfloat16>(const AttentionArgs&);
template void avx2Attention<KvType::kInt8>(const AttentionArgs&);

}  // namespace glm_relay
