// Kernels for 64-bit Arm CPUs with the byte dot products of Armv8.2 (FEAT_DotProd). Equal to scalar/
// with ==. What is not here is scalar/'s (table.cc).
#pragma once

#include "kernels/kernels.h"

namespace glm_relay {

template <DType Type>
void neonMatmul(const MatmulArgs& args);
void neonMatmulInt8(const QuantMatmulArgs& args);
void neonMatmulInt4(const QuantMatmulArgs& args);
float neonRoundingError(const float* weights, int count, float scale, QuantRange range);
void neonQuantizeRows(ActivationTile* out, const float* x, int rows, int k);
template <KvType Type>
void neonAttention(const AttentionArgs& args);
void neonQuantizeHead(int8_t* out, uint16_t* scale, const float* in, int headDim);

void neonRmsNorm(float* y, const float* x, const float* weight, int size, float eps);
void neonLayerNorm(float* y, const float* x, const float* weight, const float* bias, int size, float eps);
void neonRotate(float* head, const float* cosSin, int ropeDim);
void neonRotateHalves(float* head, const float* cosSin, int ropeDim);
void neonGatedSilu(float* y, const float* gateUp, int size);
void neonGelu(float* y, const float* x, int size);
void neonGatedGelu(float* y, const float* upGate, int size);
void neonScaleAdd(float* y, const float* x, float scale, const float* delta, int64_t count);
template <DType Type>
void neonWiden(float* out, const void* in, int64_t count);
template <DType Type>
void neonNarrow(void* out, const float* in, int64_t count);
template <DType Type>
void neonRound(float* x, int64_t count);
void neonExpWeights(float* out, const float* logits, int64_t count, float max, float temperature);
float neonExpSum(const float* logits, int64_t count, float max);

}  // namespace glm_relay
