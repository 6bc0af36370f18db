// Rounds activations, keys and values to 8 bits, equal to scalar/quant_matmul.cc.
#include "kernels/neon/lanes.h"
#include "kernels/neon/neon.h"
#include "kernels/quant_math.h"

namespace glm_relay {

namespace {

constexpr int kGroupVectors = kTileColumns / 4;

inline uint32x4_t magnitudeBits(float32x4_t x) { return vreinterpretq_u32_f32(vabsq_f32(x)); }

// To the nearest integers, ties to even.
inline int32x4_t rounded(float32x4_t x, float inverse) { return vcvtnq_s32_f32(vmulq_n_f32(x, inverse)); }

// Sixteen integers of at most 127 as bytes, in order.
inline int8x16_t bytes(const int32x4_t q[4]) {
  const int16x8_t low = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

// Row r of a tile from the 32 values of its group.
inline void quantizeGroup(ActivationTile& tile, int r, const float32x4_t x[kGroupVectors]) {
  uint32x4_t largest = magnitudeBits(x[0]);
  for (int i = 1; i < kGroupVectors; i++) largest = vmaxq_u32(largest, magnitudeBits(x[i]));
  const ActivationScale scale = activationScale(vmaxvq_u32(largest));
  int32x4_t q[kGroupVectors];
  for (int i = 0; i < kGroupVectors; i++) {
    q[i] = scale.inverse == 0.0f ? vdupq_n_s32(0) : rounded(x[i], scale.inverse);
  }
  const int8x16_t row[2] = {bytes(q), bytes(q + 4)};
  int8_t quads[kTileColumns / kQuad][kQuad];
  vst1q_s8(quads[0], row[0]);
  vst1q_s8(quads[4], row[1]);
  for (int i = 0; i < kTileColumns / kQuad; i++) std::memcpy(tile.values[i][r], quads[i], kQuad);

  // Columns 0, 1 and 2, 3 of every four are the even and the odd lanes of 16 bits.
  const int16x8_t pairs = vaddq_s16(vpaddlq_s8(row[0]), vpaddlq_s8(row[1]));
  int16x4_t sums = vadd_s16(vget_low_s16(pairs), vget_high_s16(pairs));
  sums = vadd_s16(sums, vext_s16(sums, sums, 2));
  const int16x4_t offset = vmul_n_s16(sums, -kInt4Offset);
  tile.offset[r][0] = vget_lane_s16(offset, 0);
  tile.offset[r][1] = vget_lane_s16(offset, 1);
  tile.scale[r] = scale.scale;
}

}  // namespace

float neonRoundingError(const float* weights, int count, float scale, QuantRange range) {
  const float inverse = inverseScale(scale);
  const float32x4_t low = vdupq_n_f32(range.low);
  const float32x4_t high = vdupq_n_f32(range.high);
  float32x4_t sums[kTreeVectors];
  for (int v = 0; v < kTreeVectors; v++) sums[v] = vdupq_n_f32(0.0f);
  for (int i = 0; i < count; i += kTreeLanes) {
    for (int v = 0; v < kTreeVectors; v++) {
      const float32x4_t w = vld1q_f32(weights + i + 4 * v);
      const float32x4_t q = vrndnq_f32(vmulq_n_f32(w, inverse));
      const float32x4_t kept = vminq_f32(vmaxq_f32(q, low), high);
      const float32x4_t error = vsubq_f32(w, vmulq_n_f32(kept, scale));
      sums[v] = vaddq_f32(sums[v], vmulq_f32(error, error));
    }
  }
  return treeSum(sums);
}

void neonQuantizeRows(ActivationTile* out, const float* x, int rows, int k) {
  const int tiles = (k + kTileColumns - 1) / kTileColumns;
  for (int t = 0; t < tiles; t++) {
    const int columns = k - t * kTileColumns;
    for (int r = 0; r < kTileRows; r++) {
      float padded[kTileColumns] = {};
      const float* in = padded;
      if (r < rows) {
        in = x + static_cast<int64_t>(r) * k + t * kTileColumns;
        if (columns < kTileColumns) {
          std::memcpy(padded, in, columns * sizeof(float));
          in = padded;
        }
      }
      float32x4_t group[kGroupVectors];
      for (int i = 0; i < kGroupVectors; i++) group[i] = vld1q_f32(in + 4 * i);
      quantizeGroup(out[t], r, group);
    }
  }
}

void neonQuantizeHead(int8_t* out, uint16_t* scale, const float* in, int headDim) {
  uint32x4_t most = vdupq_n_u32(0);
  int d = 0;
  for (; d + 4 <= headDim; d += 4) most = vmaxq_u32(most, magnitudeBits(vld1q_f32(in + d)));
  const uint32_t ofVectors = vmaxvq_u32(most);
  const uint32_t ofRest = largestMagnitude(in + d, headDim - d);
  const HeadScale head = headScale(ofVectors > ofRest ? ofVectors : ofRest);
  *scale = head.half;
  if (head.inverse == 0.0f) {
    std::memset(out, 0, headDim);
    return;
  }
  const float32x4_t low = vdupq_n_f32(-127.0f);
  const float32x4_t high = vdupq_n_f32(127.0f);
  for (d = 0; d + 16 <= headDim; d += 16) {
    int32x4_t q[4];
    for (int i = 0; i < 4; i++) {
      const float32x4_t x = vmulq_n_f32(vld1q_f32(in + d + 4 * i), head.inverse);
      q[i] = vcvtnq_s32_f32(vminq_f32(vmaxq_f32(x, low), high));
    }
    vst1q_s8(out + d, bytes(q));
  }
  for (; d < headDim; d++) {
    const float x = in[d] * head.inverse;
    const float above = x < -127.0f ? -127.0f : x;
    out[d] = static_cast<int8_t>(roundToInt(above > 127.0f ? 127.0f : above));
  }
}

}  // namespace glm_relay
