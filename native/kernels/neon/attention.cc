// Streamed attention, equal to scalar/attention.cc. A key tile holds 16 keys side by side for each
// dimension, so the lanes of q . k are keys and each sum runs over dimensions in ascending order; the
// lanes of the output are dimensions and each sum runs over keys. A tile is widened once for all
// queries of the call.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kv_tile.h"
#include "kernels/neon/lanes.h"
#include "kernels/neon/neon.h"

namespace glm_relay {

namespace {

constexpr int kKeyVectors = kKeyTile / 4;

// Sums that a query carries from tile to tile, in the call's scratch memory.
struct Running {
  float* max;      // [queries]
  float* sums;     // [queries, 16]
  float* weights;  // [queries, 16]: first the scores of the tile at hand, then exp of them
};

// Eight bytes as two vectors.
inline float32x4x2_t widen8(const int8_t* p) {
  const int16x8_t wide = vmovl_s8(vld1_s8(p));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)))}};
}

// The 16 keys and the 16 values of a tile as float32, in the order in which they are stored.
template <KvType Type>
void widenTiles(float* keys, float* values, const uint8_t* keyTile, const uint8_t* valueTile, int headDim) {
  constexpr DType kStored = static_cast<DType>(Type);
  const int count = kKeyTile * headDim;  // a multiple of 16
  for (int i = 0; i < count; i += 4) {
    vst1q_f32(keys + i, load4<kStored>(keyTile + i * Stored<kStored>::kBytes));
    vst1q_f32(values + i, load4<kStored>(valueTile + i * Stored<kStored>::kBytes));
  }
}

template <>
void widenTiles<KvType::kInt8>(float* keys, float* values, const uint8_t* keyTile, const uint8_t* valueTile,
                               int headDim) {
  const uint8_t* keyScales = keyTile + kKeyTile * headDim;
  float32x4_t scales[kKeyVectors];
  for (int v = 0; v < kKeyVectors; v++) scales[v] = load4<DType::kFloat16>(keyScales + 8 * v);
  const int8_t* keyIn = reinterpret_cast<const int8_t*>(keyTile);
  for (int at = 0; at < kKeyTile * headDim; at += kKeyTile) {
    for (int v = 0; v < kKeyVectors; v += 2) {
      const float32x4x2_t q = widen8(keyIn + at + 4 * v);
      vst1q_f32(keys + at + 4 * v, vmulq_f32(q.val[0], scales[v]));
      vst1q_f32(keys + at + 4 * v + 4, vmulq_f32(q.val[1], scales[v + 1]));
    }
  }
  const int8_t* valueIn = reinterpret_cast<const int8_t*>(valueTile);
  for (int j = 0; j < kKeyTile; j++) {
    const float scale = KvTile<KvType::kInt8>::scale(valueTile, headDim, j);
    const int8_t* in = valueIn + j * headDim;
    float* out = values + j * headDim;
    int d = 0;
    for (; d + 8 <= headDim; d += 8) {
      const float32x4x2_t q = widen8(in + d);
      vst1q_f32(out + d, vmulq_n_f32(q.val[0], scale));
      vst1q_f32(out + d + 4, vmulq_n_f32(q.val[1], scale));
    }
    for (; d < headDim; d++) out[d] = static_cast<float>(in[d]) * scale;
  }
}

// scores[q][16] = scale * q . k for Queries queries at once: enough independent sums to hide the
// latency of the fused multiply-add.
template <int Queries>
void scoreQueries(float* scores, const AttentionQuery* queries, const float* keys, int headDim, float scale) {
  float32x4_t sum[Queries][kKeyVectors];
#pragma GCC unroll 4
  for (int i = 0; i < Queries; i++) {
#pragma GCC unroll 16
    for (int v = 0; v < kKeyVectors; v++) sum[i][v] = vdupq_n_f32(0.0f);
  }
  for (int d = 0; d < headDim; d++) {
    float32x4_t key[kKeyVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kKeyVectors; v++) key[v] = vld1q_f32(keys + d * kKeyTile + 4 * v);
#pragma GCC unroll 4
    for (int i = 0; i < Queries; i++) {
      const float q = queries[i].q[d];
#pragma GCC unroll 16
      for (int v = 0; v < kKeyVectors; v++) sum[i][v] = vfmaq_n_f32(sum[i][v], key[v], q);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Queries; i++) {
#pragma GCC unroll 16
    for (int v = 0; v < kKeyVectors; v++) {
      vst1q_f32(scores + i * kKeyTile + 4 * v, vmulq_n_f32(sum[i][v], scale));
    }
  }
}

// out[d] = out[d] * correction + sum over the visible keys, ascending, of weight * value.
template <int Vectors>
void accumulate(float* out, const float* values, int headDim, const float* weights, int visible,
                float correction) {
  float32x4_t sum[Vectors];
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; v++) sum[v] = vmulq_n_f32(vld1q_f32(out + v * 4), correction);
  for (int j = 0; j < visible; j++) {
    const float weight = weights[j];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; v++) {
      sum[v] = vfmaq_n_f32(sum[v], vld1q_f32(values + j * headDim + v * 4), weight);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; v++) vst1q_f32(out + v * 4, sum[v]);
}

void accumulateHead(float* out, const float* values, int headDim, const float* weights, int visible,
                    float correction) {
  int d = 0;
  for (; d + 64 <= headDim; d += 64) {
    accumulate<16>(out + d, values + d, headDim, weights, visible, correction);
  }
  for (; d + 16 <= headDim; d += 16) {
    accumulate<4>(out + d, values + d, headDim, weights, visible, correction);
  }
  for (; d + 4 <= headDim; d += 4) {
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
  const float32x4_t hidden = vdupq_n_f32(-std::numeric_limits<float>::infinity());
  const int32_t firstSlots[4] = {0, 1, 2, 3};
  float32x4_t scores[kKeyVectors];
  for (int v = 0; v < kKeyVectors; v++) {
    const uint32x4_t isVisible = vcltq_s32(vld1q_s32(firstSlots), vdupq_n_s32(visible - 4 * v));
    scores[v] = vbslq_f32(isVisible, vld1q_f32(weights + 4 * v), hidden);
  }

  const float32x4_t largest =
      vmaxnmq_f32(vmaxnmq_f32(scores[0], scores[1]), vmaxnmq_f32(scores[2], scores[3]));
  const float newMax = ScalarLanes::larger(vmaxnmvq_f32(largest), running.max[i]);
  const float correction = canonExp<ScalarLanes>(running.max[i] - newMax);
  running.max[i] = newMax;

  for (int v = 0; v < kKeyVectors; v++) {
    const float32x4_t weight = canonExp<NeonLanes>(vsubq_f32(scores[v], vdupq_n_f32(newMax)));
    vst1q_f32(weights + 4 * v, weight);
    vst1q_f32(sums + 4 * v, vfmaq_n_f32(weight, vld1q_f32(sums + 4 * v), correction));
  }
  return correction;
}

}  // namespace

template <KvType Type>
void neonAttention(const AttentionArgs& args) {
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

template void neonAttention<KvType::kFloat32>(const AttentionArgs&);
template void neonAttention<KvType::kFloat16>(const AttentionArgs&);
template void neonAttention<KvType::kBfloat16>(const AttentionArgs&);
template void neonAttention<KvType::kInt8>(const AttentionArgs&);

}  // namespace glm_relay
