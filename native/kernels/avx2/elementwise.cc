// Norms, rotations, activations, conversions and softmax sums, eight or sixteen lanes at a time.
#include <cmath>
#include <cstring>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"

namespace glm_relay {

void avx2RmsNorm(float* y, const float* x, const float* weight, int size, float eps) {
  __m256 low = _mm256_setzero_ps();
  __m256 high = _mm256_setzero_ps();
  int i = 0;
  for (; i + 16 <= size; i += 16) {
    const __m256 a = _mm256_loadu_ps(x + i);
    const __m256 b = _mm256_loadu_ps(x + i + 8);
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  if (i < size) {
    // Masked-off lanes load zero; fma(0, 0, lane) leaves a lane as it is.
    const __m256 a = _mm256_maskload_ps(x + i, firstLanes(size - i));
    const __m256 b =
        size - i > 8 ? _mm256_maskload_ps(x + i + 8, firstLanes(size - i - 8)) : _mm256_setzero_ps();
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  const float mean = treeSum(low, high) / static_cast<float>(size);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  const __m256 inverse8 = _mm256_set1_ps(inverse);
  for (i = 0; i + 8 <= size; i += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse8);
    _mm256_storeu_ps(y + i, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + i)));
  }
  for (; i < size; i++) y[i] = (x[i] * inverse) * weight[i];
}

void avx2LayerNorm(float* y, const float* x, const float* weight, const float* bias, int size, float eps) {
  const int whole = size / 16 * 16;
  __m256 low = _mm256_setzero_ps();
  __m256 high = _mm256_setzero_ps();
  for (int i = 0; i < whole; i += 16) {
    low = _mm256_add_ps(low, _mm256_loadu_ps(x + i));
    high = _mm256_add_ps(high, _mm256_loadu_ps(x + i + 8));
  }
  float lanes[kTreeLanes];
  _mm256_storeu_ps(lanes, low);
  _mm256_storeu_ps(lanes + 8, high);
  for (int i = whole; i < size; i++) lanes[i - whole] = lanes[i - whole] + x[i];
  const float mean = treeSum(lanes) / static_cast<float>(size);

  const __m256 mean8 = _mm256_set1_ps(mean);
  low = high = _mm256_setzero_ps();
  for (int i = 0; i < whole; i += 16) {
    const __m256 a = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean8);
    const __m256 b = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8), mean8);
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  _mm256_storeu_ps(lanes, low);
  _mm256_storeu_ps(lanes + 8, high);
  for (int i = whole; i < size; i++) {
    const float centred = x[i] - mean;
    lanes[i - whole] = std::fmaf(centred, centred, lanes[i - whole]);
  }
  const float variance = treeSum(lanes) / static_cast<float>(size);
  const float inverse = 1.0f / std::sqrt(variance + eps);
  const __m256 inverse8 = _mm256_set1_ps(inverse);
  int i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean8), inverse8);
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(scaled, _mm256_loadu_ps(weight + i), _mm256_loadu_ps(bias + i)));
  }
  for (; i < size; i++) y[i] = std::fmaf((x[i] - mean) * inverse, weight[i], bias[i]);
}

void avx2Rotate(float* head, const float* cosSin, int ropeDim) {
  int i = 0;
  for (; i + 8 <= ropeDim; i += 8) {
    const __m256 pair = _mm256_loadu_ps(head + i);
    const __m256 angle = _mm256_loadu_ps(cosSin + i);
    const __m256 cosine = _mm256_moveldup_ps(angle);
    const __m256 sine = _mm256_movehdup_ps(angle);
    // Even lanes: x cos - y sin; odd lanes: y cos + x sin, both as one fma of a rounded product.
    const __m256 crossed = _mm256_mul_ps(_mm256_permute_ps(pair, 0xb1), sine);
    _mm256_storeu_ps(head + i, _mm256_fmaddsub_ps(pair, cosine, crossed));
  }
  for (; i < ropeDim; i += 2) {
    const float x = head[i];
    const float y = head[i + 1];
    head[i] = std::fmaf(x, cosSin[i], -(y * cosSin[i + 1]));
    head[i + 1] = std::fmaf(y, cosSin[i], x * cosSin[i + 1]);
  }
}

void avx2RotateHalves(float* head, const float* cosSin, int ropeDim) {
  const int half = ropeDim / 2;
  int j = 0;
  for (; j + 8 <= half; j += 8) {
    const __m256 first = _mm256_loadu_ps(cosSin + 2 * j);
    const __m256 second = _mm256_loadu_ps(cosSin + 2 * j + 8);
    // Cosines are in the even places and sines in the odd ones; the shuffles leave 64-bit pairs to sort.
    const auto sorted = [](__m256 v) {
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
    };
    const __m256 cosine = sorted(_mm256_shuffle_ps(first, second, 0x88));
    const __m256 sine = sorted(_mm256_shuffle_ps(first, second, 0xdd));
    const __m256 x = _mm256_loadu_ps(head + j);
    const __m256 y = _mm256_loadu_ps(head + half + j);
    _mm256_storeu_ps(head + j, _mm256_fmsub_ps(x, cosine, _mm256_mul_ps(y, sine)));
    _mm256_storeu_ps(head + half + j, _mm256_fmadd_ps(y, cosine, _mm256_mul_ps(x, sine)));
  }
  for (; j < half; j++) {
    const float x = head[j];
    const float y = head[half + j];
    head[j] = std::fmaf(x, cosSin[2 * j], -(y * cosSin[2 * j + 1]));
    head[half + j] = std::fmaf(y, cosSin[2 * j], x * cosSin[2 * j + 1]);
  }
}

void avx2GatedSilu(float* y, const float* gateUp, int size) {
  int i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 gate = canonSilu<Avx2Lanes>(_mm256_loadu_ps(gateUp + i));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(gate, _mm256_loadu_ps(gateUp + size + i)));
  }
  for (; i < size; i++) y[i] = canonSilu<ScalarLanes>(gateUp[i]) * gateUp[size + i];
}

void avx2Gelu(float* y, const float* x, int size) {
  int i = 0;
  for (; i + 8 <= size; i += 8) _mm256_storeu_ps(y + i, canonGeluTanh<Avx2Lanes>(_mm256_loadu_ps(x + i)));
  for (; i < size; i++) y[i] = canonGeluTanh<ScalarLanes>(x[i]);
}

void avx2GatedGelu(float* y, const float* upGate, int size) {
  int i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 gate = canonGeluErf<Avx2Lanes>(_mm256_loadu_ps(upGate + size + i));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(upGate + i), gate));
  }
  for (; i < size; i++) y[i] = upGate[i] * canonGeluErf<ScalarLanes>(upGate[size + i]);
}

void avx2ScaleAdd(float* y, const float* x, float scale, const float* delta, int64_t count) {
  const __m256 scale8 = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(_mm256_loadu_ps(x + i), scale8, _mm256_loadu_ps(delta + i)));
  }
  for (; i < count; i++) y[i] = std::fmaf(x[i], scale, delta[i]);
}

void avx2Add(float* x, const float* delta, int64_t count) {
  for (int64_t i = 0; i < count; i++) x[i] = x[i] + delta[i];
}

template <DType Type>
void avx2Widen(float* out, const void* in, int64_t count) {
  const uint8_t* bytes = static_cast<const uint8_t*>(in);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, load8<Type>(bytes + i * Stored<Type>::kBytes));
  for (; i < count; i++) out[i] = Stored<Type>::load(in, i);
}

template <DType Type>
void avx2Narrow(void* out, const float* in, int64_t count) {
  uint8_t* bytes = static_cast<uint8_t*>(out);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) store8<Type>(bytes + i * Stored<Type>::kBytes, _mm256_loadu_ps(in + i));
  for (; i < count; i++) Stored<Type>::store(out, i, in[i]);
}

template <DType Type>
void avx2Round(float* x, int64_t count) {
  alignas(32) uint8_t stored[32];
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    store8<Type>(stored, _mm256_loadu_ps(x + i));
    _mm256_storeu_ps(x + i, load8<Type>(stored));
  }
  for (; i < count; i++) {
    Stored<Type>::store(stored, 0, x[i]);
    x[i] = Stored<Type>::load(stored, 0);
  }
}

void avx2ExpWeights(float* out, const float* logits, int64_t count, float max, float temperature) {
  const __m256 max8 = _mm256_set1_ps(max);
  const __m256 temperature8 = _mm256_set1_ps(temperature);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 x = _mm256_div_ps(_mm256_sub_ps(_mm256_loadu_ps(logits + i), max8), temperature8);
    _mm256_storeu_ps(out + i, canonExp<Avx2Lanes>(x));
  }
  for (; i < count; i++) out[i] = canonExp<ScalarLanes>((logits[i] - max) / temperature);
}

float avx2ExpSum(const float* logits, int64_t count, float max) {
  const __m256 max8 = _mm256_set1_ps(max);
  __m256 low = _mm256_setzero_ps();
  __m256 high = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    low = _mm256_add_ps(low, canonExp<Avx2Lanes>(_mm256_sub_ps(_mm256_loadu_ps(logits + i), max8)));
    high = _mm256_add_ps(high, canonExp<Avx2Lanes>(_mm256_sub_ps(_mm256_loadu_ps(logits + i + 8), max8)));
  }
  float lanes[kTreeLanes];
  _mm256_storeu_ps(lanes, low);
  _mm256_storeu_ps(lanes + 8, high);
  for (; i < count; i++) {
    lanes[i % kTreeLanes] = lanes[i % kTreeLanes] + canonExp<ScalarLanes>(logits[i] - max);
  }
  return treeSum(lanes);
}

template void avx2Widen<DType::kFloat32>(float*, const void*, int64_t);
template void avx2Widen<DType::kFloat16>(float*, const void*, int64_t);
template void avx2Widen<DType::kBfloat16>(float*, const void*, int64_t);
template void avx2Narrow<DType::kFloat32>(void*, const float*, int64_t);
template void avx2Narrow<DType::kFloat16>(void*, const float*, int64_t);
template void avx2Narrow<DType::kBfloat16>(void*, const float*, int64_t);
template void avx2Round<DType::kFloat32>(float*, int64_t);
template void avx2Round<DType::kFloat16>(float*, int64_t);
template void avx2Round<DType::kBfloat16>(float*, int64_t);

}  // namespace glm_relay
