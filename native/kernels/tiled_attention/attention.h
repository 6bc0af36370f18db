// Streamed attention, equal to scalar/attention.cc. A key tile holds 16 keys side by side for each
// dimension, so the lanes of q . k are keys and each sum runs over dimensions in ascending order; the
// lanes of the output are dimensions and each sum runs over keys. A tile is widened once for all queries
// of the call.
//
// Written once for vectors of any width; `V` (attention.cc of a variant) has the functions of the canon's
// lanes (canon_math.h), says what suits its registers, and how vectors come and go:
//   kLanes         floats of a vector
//   kScoreQueries  queries whose scores are summed side by side: enough independent sums to hide the latency
//                  of the fused multiply-add
//   kOutQueries    queries that share what is read of a tile's values
//   kOutVectors    vectors of each of their outputs that are summed side by side
//   kByteVectors   vectors that `widen` makes of as many bytes as they have lanes
//   load, store    floats, or stored elements as floats
//   firstLanes     the lanes below `count` of one vector, the others of another; where a row of scores has
//                  several vectors, `count` may be negative or more than there are
//   largest        of all lanes of a row of scores
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/canon_math.h"
#include "kernels/kernels.h"
#include "kernels/kv_tile.h"
#include "kernels/with_count.h"

namespace glm_relay {
namespace {
namespace tiled_attention {

// Vectors of one row of a key tile, and of the sums of the weights.
template <class V>
constexpr int kKeyVectors = kKeyTile / V::kLanes;
static_assert(kKeyTile == kTreeLanes, "each lane of a sum is that of a key");

// Sums that a query carries from tile to tile, in the call's scratch memory.
struct Running {
  float* max;      // [queries]
  float* sums;     // [queries, 16]
  float* weights;  // [queries, 16]: first the scores of the tile at hand, then exp of them
};

// What a query adds to its output from a tile.
struct Part {
  float* out;
  const float* weights;
  float correction;
};

// out[i] = in[i] * scale of its lane, where `scales` go round; returns how many of `count` are done, the
// others are too few for a round.
template <class V, int Scales>
inline int widenBytes(float* out, const int8_t* in, int count, const typename V::Float (&scales)[Scales]) {
  constexpr int kVectors = V::kByteVectors;
  constexpr int kRound = Scales > kVectors ? Scales : kVectors;
  int i = 0;
  for (; i + kRound * V::kLanes <= count; i += kRound * V::kLanes) {
#pragma GCC unroll 4
    for (int first = 0; first < kRound; first += kVectors) {
      typename V::Float wide[kVectors];
      V::widen(wide, in + i + first * V::kLanes);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) {
        V::store(out + i + (first + v) * V::kLanes, V::mul(wide[v], scales[(first + v) % Scales]));
      }
    }
  }
  return i;
}

// The 16 keys and the 16 values of a tile as float32, in the order in which they are stored. A function of
// its own, or its loops find too few registers.
template <class V, KvType Type>
__attribute__((noinline)) void widenTiles(float* keys, float* values, const uint8_t* keyTile,
                                          const uint8_t* valueTile, int headDim) {
  if constexpr (Type == KvType::kInt8) {
    typename V::Float scales[kKeyVectors<V>];
    for (int v = 0; v < kKeyVectors<V>; v++) {
      const int scale = kKeyTile * headDim + v * V::kLanes * Stored<DType::kFloat16>::kBytes;
      scales[v] = V::template load<DType::kFloat16>(keyTile + scale);
    }
    widenBytes<V>(keys, reinterpret_cast<const int8_t*>(keyTile), kKeyTile * headDim, scales);
    for (int j = 0; j < kKeyTile; j++) {
      const float scale = KvTile<Type>::scale(valueTile, headDim, j);
      const typename V::Float same[1] = {V::set(scale)};
      const int8_t* in = reinterpret_cast<const int8_t*>(valueTile) + j * headDim;
      float* out = values + j * headDim;
      for (int d = widenBytes<V>(out, in, headDim, same); d < headDim; d++) {
        out[d] = static_cast<float>(in[d]) * scale;
      }
    }
  } else {
    constexpr DType kStored = static_cast<DType>(Type);
    for (int i = 0; i < kKeyTile * headDim; i += V::kLanes) {
      V::store(keys + i, V::template load<kStored>(keyTile + i * Stored<kStored>::kBytes));
      V::store(values + i, V::template load<kStored>(valueTile + i * Stored<kStored>::kBytes));
    }
  }
}

// scores[q][16] = scale * q . k for Queries queries at once.
template <class V, int Queries>
void scoreQueries(float* scores, const AttentionQuery* queries, const float* keys, int headDim, float scale) {
  constexpr int kVectors = kKeyVectors<V>;
  typename V::Float sum[Queries][kVectors];
  const float* q[Queries];
#pragma GCC unroll 8
  for (int i = 0; i < Queries; i++) {
    q[i] = queries[i].q;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) sum[i][v] = V::set(0.0f);
  }
  for (int d = 0; d < headDim; d++) {
    typename V::Float key[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) key[v] = V::load(keys + d * kKeyTile + v * V::kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Queries; i++) {
      const typename V::Float same = V::set(q[i][d]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) sum[i][v] = V::fma(same, key[v], sum[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Queries; i++) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      V::store(scores + i * kKeyTile + v * V::kLanes, V::mul(sum[i][v], V::set(scale)));
    }
  }
}

// Scores of all queries against a tile. Those of queries that end before it are computed along and never
// looked at.
template <class V>
void scoreTile(float* scores, const AttentionArgs& args, const float* keys) {
  int i = 0;
  const auto score = [&](auto queries) {
    for (; i + queries <= args.queryCount; i += queries) {
      scoreQueries<V, queries>(scores + i * kKeyTile, args.queries + i, keys, args.headDim, args.scale);
    }
  };
  score(std::integral_constant<int, V::kScoreQueries>());
  score(std::integral_constant<int, 2>());
  score(std::integral_constant<int, 1>());
}

// Turns the scores of one tile into weights and returns the factor for the sums so far.
template <class V>
float softmaxTile(const Running& running, int i, int visible) {
  using Float = typename V::Float;
  constexpr int kVectors = kKeyVectors<V>;
  float* weights = running.weights + i * kKeyTile;
  float* sums = running.sums + i * kTreeLanes;
  const Float hidden = V::set(-std::numeric_limits<float>::infinity());
  Float scores[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v++) {
    scores[v] = V::firstLanes(visible - v * V::kLanes, V::load(weights + v * V::kLanes), hidden);
  }

  const float newMax = ScalarLanes::larger(V::largest(scores), running.max[i]);
  const float correction = canonExp<ScalarLanes>(running.max[i] - newMax);
  running.max[i] = newMax;

#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v++) {
    const Float weight = canonExp<V>(V::sub(scores[v], V::set(newMax)));
    V::store(weights + v * V::kLanes, weight);
    const Float sum = V::load(sums + v * V::kLanes);
    V::store(sums + v * V::kLanes, V::fma(sum, V::set(correction), weight));
  }
  return correction;
}

// out[d] = out[d] * correction + sum over the visible keys, ascending, of weight * value; for all parts and
// Vectors vectors from d on.
template <class V, int Parts, int Vectors>
void accumulate(const Part* parts, const float* values, int d, int headDim, int visible) {
  using Float = typename V::Float;
  Float sum[Parts][Vectors];
#pragma GCC unroll 2
  for (int p = 0; p < Parts; p++) {
    const Float correction = V::set(parts[p].correction);
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; v++) {
      sum[p][v] = V::mul(V::load(parts[p].out + d + v * V::kLanes), correction);
    }
  }
  for (int j = 0; j < visible; j++) {
    Float weight[Parts];
#pragma GCC unroll 2
    for (int p = 0; p < Parts; p++) weight[p] = V::set(parts[p].weights[j]);
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; v++) {
      const Float value = V::load(values + j * headDim + d + v * V::kLanes);
#pragma GCC unroll 2
      for (int p = 0; p < Parts; p++) sum[p][v] = V::fma(weight[p], value, sum[p][v]);
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < Parts; p++) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; v++) V::store(parts[p].out + d + v * V::kLanes, sum[p][v]);
  }
}

// From dimension d to the head's last, with Vectors vectors at a time as long as there are so many.
template <class V, int Parts, int Vectors = V::kOutVectors>
void accumulateHead(const Part* parts, const float* values, int d, int headDim, int visible) {
  for (; d + Vectors * V::kLanes <= headDim; d += Vectors * V::kLanes) {
    accumulate<V, Parts, Vectors>(parts, values, d, headDim, visible);
  }
  if constexpr (Vectors > 1) {
    return accumulateHead<V, Parts, Vectors / 2>(parts, values, d, headDim, visible);
  }
  for (; d < headDim; d++) {
    for (int p = 0; p < Parts; p++) {
      float sum = parts[p].out[d] * parts[p].correction;
      for (int j = 0; j < visible; j++) sum = std::fmaf(parts[p].weights[j], values[j * headDim + d], sum);
      parts[p].out[d] = sum;
    }
  }
}

// What all queries get from a tile, from their scores on.
template <class V>
void addTile(const Running& running, const AttentionArgs& args, const float* values, int tileBegin) {
  const auto visibleOf = [&](int query) {
    return std::min(kKeyTile, args.queries[query].position - tileBegin + 1);
  };
  for (int i = 0; i < args.queryCount;) {
    const int visible = visibleOf(i);
    if (visible <= 0) {
      i++;
      continue;
    }
    Part parts[V::kOutQueries];
    int count = 0;
    do {
      const float correction = softmaxTile<V>(running, i, visible);
      parts[count++] = {args.queries[i].out, running.weights + i * kKeyTile, correction};
      i++;
    } while (count < V::kOutQueries && i < args.queryCount && visibleOf(i) == visible);
    withCount<V::kOutQueries>(
        count, [&](auto all) { accumulateHead<V, all>(parts, values, 0, args.headDim, visible); });
  }
}

template <class V, KvType Type>
void attention(const AttentionArgs& args) {
  const int headDim = args.headDim;
  const int tileFloats = kKeyTile * headDim;
  float* keys = args.scratch;
  float* values = keys + tileFloats;
  const Running running = {values + tileFloats, values + tileFloats + kMaxQueries,
                           values + tileFloats + kMaxQueries * (1 + kTreeLanes)};

  // Not std::fill: a copy of a library template, built with a variant's flags, could be linked into code
  // that runs on every CPU.
  int lastPosition = 0;
  for (int i = 0; i < args.queryCount; i++) {
    running.max[i] = -std::numeric_limits<float>::infinity();
    for (int lane = 0; lane < kTreeLanes; lane++) running.sums[i * kTreeLanes + lane] = 0.0f;
    for (int d = 0; d < headDim; d++) args.queries[i].out[d] = 0.0f;
    lastPosition = std::max(lastPosition, args.queries[i].position);
  }

  for (int tile = 0; tile <= lastPosition / kKeyTile; tile++) {
    const size_t offset = args.kv.tileOffset(tile);
    widenTiles<V, Type>(keys, values, args.kv.keys + offset, args.kv.values + offset, headDim);
    scoreTile<V>(running.weights, args, keys);
    addTile<V>(running, args, values, tile * kKeyTile);
  }

  for (int i = 0; i < args.queryCount; i++) {
    const float sum = treeSum(running.sums + i * kTreeLanes);
    for (int d = 0; d < headDim; d++) args.queries[i].out[d] = args.queries[i].out[d] / sum;
  }
}

}  // namespace tiled_attention
}  // namespace
}  // namespace glm_relay
