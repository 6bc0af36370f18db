// Streamed attention, equal to scalar/attention.cc. A key tile holds 16 keys side by side for each
// dimension, one vector: the lanes of q . k are keys and each sum runs over dimensions in ascending
// order; the lanes of the output are dimensions and each sum runs over keys. A tile is widened once for
// all queries of the call, and two queries at a time share what is read of its values.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/avx512_vnni/avx512.h"
#include "kernels/avx512_vnni/floats.h"
#include "kernels/kv_tile.h"

namespace glm_relay {

namespace {

static_assert(kKeyTile == 16 && kTreeLanes == 16, "a tile of keys and the sums are one vector");
constexpr int kLanes = 16;
// Sums that hide the latency of the fused multiply-add.
constexpr int kScoreQueries = 8;
// Vectors of the output that are summed side by side, for two queries.
constexpr int kOutVectors = 8;

// Sums that a query carries from tile to tile, in the call's scratch memory.
struct Running {
  float* max;      // [queries]
  float* sums;     // [queries, 16]
  float* weights;  // [queries, 16]: first the scores of the tile at hand, then exp of them
};

inline __m512 widen16(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// The 16 keys and the 16 values of a tile as float32, in the order in which they are stored.
template <KvType Type>
void widenTiles(float* keys, float* values, const uint8_t* keyTile, const uint8_t* valueTile, int headDim) {
  constexpr DType kStored = static_cast<DType>(Type);
  for (int i = 0; i < kKeyTile * headDim; i += kLanes) {
    _mm512_storeu_ps(keys + i, load16<kStored>(keyTile + i * dtypeBytes(kStored)));
    _mm512_storeu_ps(values + i, load16<kStored>(valueTile + i * dtypeBytes(kStored)));
  }
}

template <>
void widenTiles<KvType::kInt8>(float* keys, float* values, const uint8_t* keyTile, const uint8_t* valueTile,
                               int headDim) {
  const __m512 keyScales = load16<DType::kFloat16>(keyTile + kKeyTile * headDim);
  const int8_t* keyIn = reinterpret_cast<const int8_t*>(keyTile);
  for (int at = 0; at < kKeyTile * headDim; at += kLanes) {
    _mm512_storeu_ps(keys + at, _mm512_mul_ps(widen16(keyIn + at), keyScales));
  }
  const int8_t* valueIn = reinterpret_cast<const int8_t*>(valueTile);
  for (int j = 0; j < kKeyTile; j++) {
    const float scale = KvTile<KvType::kInt8>::scale(valueTile, headDim, j);
    const int8_t* in = valueIn + j * headDim;
    float* out = values + j * headDim;
    int d = 0;
    for (; d + kLanes <= headDim; d += kLanes) {
      _mm512_storeu_ps(out + d, _mm512_mul_ps(widen16(in + d), _mm512_set1_ps(scale)));
    }
    for (; d < headDim; d++) out[d] = static_cast<float>(in[d]) * scale;
  }
}

// scores[q][16] = scale * q . k for Queries queries at once.
template <int Queries>
void scoreQueries(float* scores, const AttentionQuery* queries, const float* keys, int headDim, float scale) {
  __m512 sum[Queries];
  const float* q[Queries];
#pragma GCC unroll 8
  for (int i = 0; i < Queries; i++) {
    sum[i] = _mm512_setzero_ps();
    q[i] = queries[i].q;
  }
  for (int d = 0; d < headDim; d++) {
    const __m512 key = _mm512_loadu_ps(keys + d * kKeyTile);
#pragma GCC unroll 8
    for (int i = 0; i < Queries; i++) sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d]), key, sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Queries; i++) {
    _mm512_storeu_ps(scores + i * kKeyTile, _mm512_mul_ps(sum[i], _mm512_set1_ps(scale)));
  }
}

// What a query adds to its output from a tile.
struct Part {
  float* out;
  const float* weights;
  float correction;
};

// out[d] = out[d] * correction + sum over the visible keys, ascending, of weight * value; for all parts.
template <int Parts, int Vectors>
void accumulate(const Part* parts, const float* values, int d, int headDim, int visible) {
  __m512 sum[Parts][Vectors];
#pragma GCC unroll 2
  for (int p = 0; p < Parts; p++) {
    const __m512 correction = _mm512_set1_ps(parts[p].correction);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; v++) {
      sum[p][v] = _mm512_mul_ps(_mm512_loadu_ps(parts[p].out + d + v * kLanes), correction);
    }
  }
  for (int j = 0; j < visible; j++) {
    __m512 weight[Parts];
#pragma GCC unroll 2
    for (int p = 0; p < Parts; p++) weight[p] = _mm512_set1_ps(parts[p].weights[j]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; v++) {
      const __m512 value = _mm512_loadu_ps(values + j * headDim + d + v * kLanes);
#pragma GCC unroll 2
      for (int p = 0; p < Parts; p++) sum[p][v] = _mm512_fmadd_ps(weight[p], value, sum[p][v]);
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < Parts; p++) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; v++) _mm512_storeu_ps(parts[p].out + d + v * kLanes, sum[p][v]);
  }
}

template <int Parts>
void accumulateHead(const Part* parts, const float* values, int headDim, int visible) {
  int d = 0;
  for (; d + kOutVectors * kLanes <= headDim; d += kOutVectors * kLanes) {
    accumulate<Parts, kOutVectors>(parts, values, d, headDim, visible);
  }
  for (; d + 2 * kLanes <= headDim; d += 2 * kLanes) accumulate<Parts, 2>(parts, values, d, headDim, visible);
  for (; d + kLanes <= headDim; d += kLanes) accumulate<Parts, 1>(parts, values, d, headDim, visible);
  for (; d < headDim; d++) {
    for (int p = 0; p < Parts; p++) {
      float sum = parts[p].out[d] * parts[p].correction;
      for (int j = 0; j < visible; j++) sum = std::fmaf(parts[p].weights[j], values[j * headDim + d], sum);
      parts[p].out[d] = sum;
    }
  }
}

// Turns the scores of one tile into weights and returns the factor for the sums so far.
float softmaxTile(const Running& running, int i, int visible) {
  float* weights = running.weights + i * kKeyTile;
  float* sums = running.sums + i * kTreeLanes;
  const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const __m512 scores = _mm512_mask_blend_ps(firstLanes(visible), hidden, _mm512_loadu_ps(weights));

  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(scores), _mm512_extractf32x8_ps(scores, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  const float tileMax = _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  const float newMax = ScalarLanes::larger(tileMax, running.max[i]);
  const float correction = canonExp<ScalarLanes>(running.max[i] - newMax);
  running.max[i] = newMax;

  const __m512 own = canonExp<Avx512Lanes>(_mm512_sub_ps(scores, _mm512_set1_ps(newMax)));
  _mm512_storeu_ps(weights, own);
  _mm512_storeu_ps(sums, _mm512_fmadd_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(correction), own));
  return correction;
}

}  // namespace

template <KvType Type>
void avx512Attention(const AttentionArgs& args) {
  const int headDim = args.headDim;
  const int tileFloats = kKeyTile * headDim;
  float* keys = args.scratch;
  float* values = keys + tileFloats;
  const Running running = {values + tileFloats, values + tileFloats + kMaxQueries,
                           values + tileFloats + kMaxQueries * (1 + kTreeLanes)};

  int lastPosition = 0;
  for (int i = 0; i < args.queryCount; i++) {
    running.max[i] = -std::numeric_limits<float>::infinity();
    for (int lane = 0; lane < kTreeLanes; lane++) running.sums[i * kTreeLanes + lane] = 0.0f;
    for (int d = 0; d < headDim; d++) args.queries[i].out[d] = 0.0f;
    lastPosition = std::max(lastPosition, args.queries[i].position);
  }

  for (int tile = 0; tile <= lastPosition / kKeyTile; tile++) {
    const int tileBegin = tile * kKeyTile;
    const size_t offset = args.kv.tileOffset(tile);
    widenTiles<Type>(keys, values, args.kv.keys + offset, args.kv.values + offset, headDim);

    // Scores of queries that end before this tile are computed along and never looked at.
    int i = 0;
    for (; i + kScoreQueries <= args.queryCount; i += kScoreQueries) {
      scoreQueries<kScoreQueries>(running.weights + i * kKeyTile, args.queries + i, keys, headDim,
                                  args.scale);
    }
    for (; i + 2 <= args.queryCount; i += 2) {
      scoreQueries<2>(running.weights + i * kKeyTile, args.queries + i, keys, headDim, args.scale);
    }
    for (; i < args.queryCount; i++) {
      scoreQueries<1>(running.weights + i * kKeyTile, args.queries + i, keys, headDim, args.scale);
    }

    const auto visibleOf = [&](int query) {
      return std::min(kKeyTile, args.queries[query].position - tileBegin + 1);
    };
    const auto partOf = [&](int query, int visible) {
      const float correction = softmaxTile(running, query, visible);
      return Part{args.queries[query].out, running.weights + query * kKeyTile, correction};
    };
    for (i = 0; i < args.queryCount;) {
      const int visible = visibleOf(i);
      if (visible <= 0) {
        i++;
        continue;
      }
      Part parts[2] = {partOf(i, visible), {}};
      if (i + 1 < args.queryCount && visibleOf(i + 1) == visible) {
        parts[1] = partOf(i + 1, visible);
        accumulateHead<2>(parts, values, headDim, visible);
        i += 2;
      } else {
        accumulateHead<1>(parts, values, headDim, visible);
        i++;
      }
    }
  }

  for (int i = 0; i < args.queryCount; i++) {
    const float sum = treeSum(running.sums + i * kTreeLanes);
    for (int d = 0; d < headDim; d++) args.queries[i].out[d] = args.queries[i].out[d] / sum;
  }
}

template void avx512Attention<KvType::kFloat32>(const AttentionArgs&);
template void avx512Attention<KvType::kFloat16>(const AttentionArgs&);
template void avx512Attention<KvType::kBfloat16>(const AttentionArgs&);
template void avx512Attention<KvType::kInt8>(const AttentionArgs&);

}  // namespace glm_relay
