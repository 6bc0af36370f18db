// Kernels for CPUs with AVX2, FMA and F16C. Equal to scalar/ with ==.
#pragma once

#include "kernels/kernels.h"

namespace glm_relay {

template <DType Type>
void avx2Matmul(const MatmulArgs& args);
void avx2MatmulInt8(const QuantMatmulArgs& args);
void avx2MatmulInt4(const QuantMatmulArgs& args);
float avx2RoundingError(const float* weights, int count, float scale, QuantRange range);
void avx2QuantizeRows(ActivationTile* out, const float* x, int rows, int k);
template <KvType Type>
void avx2Attention(const AttentionArgs& args);
void avx2QuantizeHead(int8_t* out, uint16_t* scale, const float* in, int headDim);

void avx2RmsNorm(float* y, const float* x, const float* weight, int size, float eps);
void avx2LayerNorm(float* y, const float* x, const float* weight, const float* bias, int size, float eps);
void avx2Rotate(float* head, const float* cosSin, int ropeDim);
void avx2RotateHalves(float* head, const float* cosSin, int ropeDim);
void avx2GatedSilu(float* y, const float* gateUp, int size);
void avx2Gelu(float* y, const float* x, int size);
void avx2GatedGelu(float* y, const float* upGate, int size);
void avx2Add(float* x, const float* delta, int64_t count);
void avx2ScaleAdd(float* y, const float* x, float scale, const float* delta, int64_t count);
template <DType Type>
void avx2Widen(float* out, const void* in, int64_t count);
template <DType Type>
void avx2Narrow(void* out, const float* in, int64_t count);
template <DType Type>
void avx2Round(float* x, int64_t count);
void avx2ExpWeights(float* out, const float* logits, int64_t count, float max, float temperature);
float avx2ExpSum(const float* logits, int64_t count, float max);

}  // namespace glm_relay
