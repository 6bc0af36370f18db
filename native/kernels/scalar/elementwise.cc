// Norms, rotations, activations, conversions and softmax sums.
#include <cmath>

#include "kernels/canon_math.h"
#include "kernels/scalar/scalar.h"

namespace glm_relay {

void scalarRmsNorm(float* y, const float* x, const float* weight, int size, float eps) {
  float lanes[kTreeLanes] = {};
  for (int i = 0; i < size; i++) lanes[i % kTreeLanes] = std::fmaf(x[i], x[i], lanes[i % kTreeLanes]);
  const float mean = treeSum(lanes) / static_cast<float>(size);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  for (int i = 0; i < size; i++) y[i] = (x[i] * inverse) * weight[i];
}

void scalarLayerNorm(float* y, const float* x, const float* weight, const float* bias, int size, float eps) {
  float lanes[kTreeLanes] = {};
  for (int i = 0; i < size; i++) lanes[i % kTreeLanes] = lanes[i % kTreeLanes] + x[i];
  const float mean = treeSum(lanes) / static_cast<float>(size);
  float squares[kTreeLanes] = {};
  for (int i = 0; i < size; i++) {
    const float centred = x[i] - mean;
    squares[i % kTreeLanes] = std::fmaf(centred, centred, squares[i % kTreeLanes]);
  }
  const float variance = treeSum(squares) / static_cast<float>(size);
  const float inverse = 1.0f / std::sqrt(variance + eps);
  for (int i = 0; i < size; i++) y[i] = std::fmaf((x[i] - mean) * inverse, weight[i], bias[i]);
}

void scalarRotate(float* head, const float* cosSin, int ropeDim) {
  for (int i = 0; i < ropeDim; i += 2) {
    const float x = head[i];
    const float y = head[i + 1];
    const float cosine = cosSin[i];
    const float sine = cosSin[i + 1];
    head[i] = std::fmaf(x, cosine, -(y * sine));
    head[i + 1] = std::fmaf(y, cosine, x * sine);
  }
}

void scalarRotateHalves(float* head, const float* cosSin, int ropeDim) {
  const int half = ropeDim / 2;
  for (int j = 0; j < half; j++) {
    const float x = head[j];
    const float y = head[half + j];
    const float cosine = cosSin[2 * j];
    const float sine = cosSin[2 * j + 1];
    head[j] = std::fmaf(x, cosine, -(y * sine));
    head[half + j] = std::fmaf(y, cosine, x * sine);
  }
}

void scalarGatedSilu(float* y, const float* gateUp, int size) {
  for (int i = 0; i < size; i++) y[i] = canonSilu<ScalarLanes>(gateUp[i]) * gateUp[size + i];
}

void scalarGelu(float* y, const float* x, int size) {
  for (int i = 0; i < size; i++) y[i] = canonGeluTanh<ScalarLanes>(x[i]);
}

void scalarGatedGelu(float* y, const float* upGate, int size) {
  for (int i = 0; i < size; i++) y[i] = upGate[i] * canonGeluErf<ScalarLanes>(upGate[size + i]);
}

void scalarScaleAdd(float* y, const float* x, float scale, const float* delta, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] = std::fmaf(x[i], scale, delta[i]);
}

void scalarAdd(float* x, const float* delta, int64_t count) {
  for (int64_t i = 0; i < count; i++) x[i] = x[i] + delta[i];
}

template <DType Type>
void scalarWiden(float* out, const void* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = Stored<Type>::load(in, i);
}

template <DType Type>
void scalarNarrow(void* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) Stored<Type>::store(out, i, in[i]);
}

template <DType Type>
void scalarRound(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    uint32_t stored;
    Stored<Type>::store(&stored, 0, x[i]);
    x[i] = Stored<Type>::load(&stored, 0);
  }
}

void scalarExpWeights(float* out, const float* logits, int64_t count, float max, float temperature) {
  for (int64_t i = 0; i < count; i++) out[i] = canonExp<ScalarLanes>((logits[i] - max) / temperature);
}

float scalarExpSum(const float* logits, int64_t count, float max) {
  float lanes[kTreeLanes] = {};
  for (int64_t i = 0; i < count; i++) {
    lanes[i % kTreeLanes] = lanes[i % kTreeLanes] + canonExp<ScalarLanes>(logits[i] - max);
  }
  return treeSum(lanes);
}

template void scalarWiden<DType::kFloat32>(float*, const void*, int64_t);
template void scalarWiden<DType::kFloat16>(float*, const void*, int64_t);
template void scalarWiden<DType::kBfloat16>(float*, const void*, int64_t);
template void scalarNarrow<DType::kFloat32>(void*, const float*, int64_t);
template void scalarNarrow<DType::kFloat16>(void*, const float*, int64_t);
template void scalarNarrow<DType::kBfloat16>(void*, const float*, int64_t);
template void scalarRound<DType::kFloat32>(float*, int64_t);
template void scalarRound<DType::kFloat16>(float*, int64_t);
template void scalarRound<DType::kBfloat16>(float*, int64_t);

}  // namespace glm_relay
