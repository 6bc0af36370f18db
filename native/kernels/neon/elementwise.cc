// Norms, rotations, activations, conversions and softmax sums, four or sixteen lanes at a time.
#include <cmath>

#include "kernels/neon/lanes.h"
#include "kernels/neon/neon.h"

namespace glm_relay {

namespace {

// The tree sum of add(x[i], lane) over all i; the vectors and the rest do the same operations.
template <class AddVector, class AddOne>
float laneSum(const float* x, int64_t count, AddVector addVector, AddOne addOne) {
  float32x4_t sums[kTreeVectors];
  for (int v = 0; v < kTreeVectors; v++) sums[v] = vdupq_n_f32(0.0f);
  int64_t i = 0;
  for (; i + kTreeLanes <= count; i += kTreeLanes) {
    for (int v = 0; v < kTreeVectors; v++) sums[v] = addVector(vld1q_f32(x + i + 4 * v), sums[v]);
  }
  if (i == count) return treeSum(sums);
  float lanes[kTreeLanes];
  for (int v = 0; v < kTreeVectors; v++) vst1q_f32(lanes + 4 * v, sums[v]);
  for (; i < count; i++) lanes[i % kTreeLanes] = addOne(x[i], lanes[i % kTreeLanes]);
  return treeSum(lanes);
}

}  // namespace

void neonRmsNorm(float* y, const float* x, const float* weight, int size, float eps) {
  const float sum = laneSum(
      x, size, [](float32x4_t a, float32x4_t lanes) { return vfmaq_f32(lanes, a, a); },
      [](float a, float lane) { return std::fmaf(a, a, lane); });
  const float mean = sum / static_cast<float>(size);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  int i = 0;
  for (; i + 4 <= size; i += 4) {
    vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), inverse), vld1q_f32(weight + i)));
  }
  for (; i < size; i++) y[i] = (x[i] * inverse) * weight[i];
}

void neonLayerNorm(float* y, const float* x, const float* weight, const float* bias, int size, float eps) {
  const float sum = laneSum(
      x, size, [](float32x4_t a, float32x4_t lanes) { return vaddq_f32(lanes, a); },
      [](float a, float lane) { return lane + a; });
  const float mean = sum / static_cast<float>(size);
  const float32x4_t mean4 = vdupq_n_f32(mean);
  const float squares = laneSum(
      x, size,
      [&](float32x4_t a, float32x4_t lanes) {
        const float32x4_t centred = vsubq_f32(a, mean4);
        return vfmaq_f32(lanes, centred, centred);
      },
      [&](float a, float lane) { return std::fmaf(a - mean, a - mean, lane); });
  const float variance = squares / static_cast<float>(size);
  const float inverse = 1.0f / std::sqrt(variance + eps);
  int i = 0;
  for (; i + 4 <= size; i += 4) {
    const float32x4_t scaled = vmulq_n_f32(vsubq_f32(vld1q_f32(x + i), mean4), inverse);
    vst1q_f32(y + i, vfmaq_f32(vld1q_f32(bias + i), scaled, vld1q_f32(weight + i)));
  }
  for (; i < size; i++) y[i] = std::fmaf((x[i] - mean) * inverse, weight[i], bias[i]);
}

void neonRotate(float* head, const float* cosSin, int ropeDim) {
  int i = 0;
  for (; i + 8 <= ropeDim; i += 8) {
    float32x4x2_t pair = vld2q_f32(head + i);
    const float32x4x2_t angle = vld2q_f32(cosSin + i);
    const float32x4_t x = pair.val[0];
    const float32x4_t y = pair.val[1];
    pair.val[0] = vfmaq_f32(vnegq_f32(vmulq_f32(y, angle.val[1])), x, angle.val[0]);
    pair.val[1] = vfmaq_f32(vmulq_f32(x, angle.val[1]), y, angle.val[0]);
    vst2q_f32(head + i, pair);
  }
  for (; i < ropeDim; i += 2) {
    const float x = head[i];
    const float y = head[i + 1];
    head[i] = std::fmaf(x, cosSin[i], -(y * cosSin[i + 1]));
    head[i + 1] = std::fmaf(y, cosSin[i], x * cosSin[i + 1]);
  }
}

void neonRotateHalves(float* head, const float* cosSin, int ropeDim) {
  const int half = ropeDim / 2;
  int j = 0;
  for (; j + 4 <= half; j += 4) {
    const float32x4x2_t angle = vld2q_f32(cosSin + 2 * j);
    const float32x4_t x = vld1q_f32(head + j);
    const float32x4_t y = vld1q_f32(head + half + j);
    vst1q_f32(head + j, vfmaq_f32(vnegq_f32(vmulq_f32(y, angle.val[1])), x, angle.val[0]));
    vst1q_f32(head + half + j, vfmaq_f32(vmulq_f32(x, angle.val[1]), y, angle.val[0]));
  }
  for (; j < half; j++) {
    const float x = head[j];
    const float y = head[half + j];
    head[j] = std::fmaf(x, cosSin[2 * j], -(y * cosSin[2 * j + 1]));
    head[half + j] = std::fmaf(y, cosSin[2 * j], x * cosSin[2 * j + 1]);
  }
}

void neonGatedSilu(float* y, const float* gateUp, int size) {
  int i = 0;
  for (; i + 4 <= size; i += 4) {
    const float32x4_t gate = canonSilu<NeonLanes>(vld1q_f32(gateUp + i));
    vst1q_f32(y + i, vmulq_f32(gate, vld1q_f32(gateUp + size + i)));
  }
  for (; i < size; i++) y[i] = canonSilu<ScalarLanes>(gateUp[i]) * gateUp[size + i];
}

void neonGelu(float* y, const float* x, int size) {
  int i = 0;
  for (; i + 4 <= size; i += 4) vst1q_f32(y + i, canonGeluTanh<NeonLanes>(vld1q_f32(x + i)));
  for (; i < size; i++) y[i] = canonGeluTanh<ScalarLanes>(x[i]);
}

void neonGatedGelu(float* y, const float* upGate, int size) {
  int i = 0;
  for (; i + 4 <= size; i += 4) {
    const float32x4_t gate = canonGeluErf<NeonLanes>(vld1q_f32(upGate + size + i));
    vst1q_f32(y + i, vmulq_f32(vld1q_f32(upGate + i), gate));
  }
  for (; i < size; i++) y[i] = upGate[i] * canonGeluErf<ScalarLanes>(upGate[size + i]);
}

void neonScaleAdd(float* y, const float* x, float scale, const float* delta, int64_t count) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    vst1q_f32(y + i, vfmaq_n_f32(vld1q_f32(delta + i), vld1q_f32(x + i), scale));
  }
  for (; i < count; i++) y[i] = std::fmaf(x[i], scale, delta[i]);
}

template <DType Type>
void neonWiden(float* out, const void* in, int64_t count) {
  const uint8_t* bytes = static_cast<const uint8_t*>(in);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(out + i, load4<Type>(bytes + i * Stored<Type>::kBytes));
  for (; i < count; i++) out[i] = Stored<Type>::load(in, i);
}

template <DType Type>
void neonNarrow(void* out, const float* in, int64_t count) {
  uint8_t* bytes = static_cast<uint8_t*>(out);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) store4<Type>(bytes + i * Stored<Type>::kBytes, vld1q_f32(in + i));
  for (; i < count; i++) Stored<Type>::store(out, i, in[i]);
}

template <DType Type>
void neonRound(float* x, int64_t count) {
  uint8_t stored[8];
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    store4<Type>(stored, vld1q_f32(x + i));
    vst1q_f32(x + i, load4<Type>(stored));
  }
  for (; i < count; i++) {
    Stored<Type>::store(stored, 0, x[i]);
    x[i] = Stored<Type>::load(stored, 0);
  }
}

void neonExpWeights(float* out, const float* logits, int64_t count, float max, float temperature) {
  const float32x4_t max4 = vdupq_n_f32(max);
  const float32x4_t temperature4 = vdupq_n_f32(temperature);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t x = vdivq_f32(vsubq_f32(vld1q_f32(logits + i), max4), temperature4);
    vst1q_f32(out + i, canonExp<NeonLanes>(x));
  }
  for (; i < count; i++) out[i] = canonExp<ScalarLanes>((logits[i] - max) / temperature);
}

float neonExpSum(const float* logits, int64_t count, float max) {
  const float32x4_t max4 = vdupq_n_f32(max);
  return laneSum(
      logits, count,
      [&](float32x4_t a, float32x4_t lanes) {
        return vaddq_f32(lanes, canonExp<NeonLanes>(vsubq_f32(a, max4)));
      },
      [&](float a, float lane) { return lane + canonExp<ScalarLanes>(a - max); });
}

template void neonWiden<DType::kFloat16>(float*, const void*, int64_t);
template void neonWiden<DType::kBfloat16>(float*, const void*, int64_t);
template void neonNarrow<DType::kFloat16>(void*, const float*, int64_t);
template void neonNarrow<DType::kBfloat16>(void*, const float*, int64_t);
template void neonRound<DType::kFloat16>(float*, int64_t);
template void neonRound<DType::kBfloat16>(float*, int64_t);

}  // namespace glm_relay
