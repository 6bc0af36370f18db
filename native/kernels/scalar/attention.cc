// out = softmax(scale * q . k_j) v_j over the keys j <= position, streamed: keys come in tiles of 16
// at absolute positions; after each tile the sums are rescaled to the new maximum.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/canon_math.h"
#include "kernels/kv_tile.h"
#include "kernels/scalar/scalar.h"

namespace glm_relay {

template <KvType Type>
static void attendOne(const AttentionQuery& query, const KvView& kv, int headDim, float scale) {
  float max = -std::numeric_limits<float>::infinity();
  float sums[kTreeLanes] = {};
  float* out = query.out;
  std::fill(out, out + headDim, 0.0f);

  for (int tile = 0; tile <= query.position / kKeyTile; tile++) {
    const uint8_t* keys = kv.keys + kv.tileOffset(tile);
    const uint8_t* values = kv.values + kv.tileOffset(tile);
    const int visible = std::min(kKeyTile, query.position - tile * kKeyTile + 1);

    // Slots after the row hold whatever was there before; they are never read.
    float scores[kKeyTile];
    float newMax = max;
    for (int j = 0; j < visible; j++) {
      float dot = 0.0f;
      for (int d = 0; d < headDim; d++)
        dot = std::fmaf(query.q[d], KvTile<Type>::key(keys, headDim, j, d), dot);
      scores[j] = dot * scale;
      newMax = ScalarLanes::larger(scores[j], newMax);
    }

    const float correction = canonExp<ScalarLanes>(max - newMax);
    for (int d = 0; d < headDim; d++) out[d] = out[d] * correction;
    for (int j = 0; j < kKeyTile; j++) {
      const float weight = j < visible ? canonExp<ScalarLanes>(scores[j] - newMax) : 0.0f;
      sums[j] = std::fmaf(sums[j], correction, weight);
      if (j >= visible) continue;
      for (int d = 0; d < headDim; d++) {
        out[d] = std::fmaf(weight, KvTile<Type>::value(values, headDim, j, d), out[d]);
      }
    }
    max = newMax;
  }

  const float sum = treeSum(sums);
  for (int d = 0; d < headDim; d++) out[d] = out[d] / sum;
}

template <KvType Type>
void scalarAttention(const AttentionArgs& args) {
  for (int i = 0; i < args.queryCount; i++) {
    attendOne<Type>(args.queries[i], args.kv, args.headDim, args.scale);
  }
}

template void scalarAttention<KvType::kFloat32>(const AttentionArgs&);
template void scalarAttention<KvType::kFloat16>(const AttentionArgs&);
template void scalarAttention<KvType::kBfloat16>(const AttentionArgs&);
template void scalarAttention<KvType::kInt8>(const AttentionArgs&);

}  // namespace glm_relay
