// The scalar kernels: the specification to the bit. They read like the formula and are not fast.
#pragma once

#include "kernels/kernels.h"

namespace glm_relay {

template <DType Type>
void scalarMatmul(const MatmulArgs& args);
void scalarMatmulInt8(const QuantMatmulArgs& args);
void scalarMatmulInt4(const QuantMatmulArgs& args);
float scalarRoundingError(const float* weights, int count, float scale, QuantRange range);
void scalarQuantizeRows(ActivationTile* out, const float* x, int rows, int k);
template <KvType Type>
void scalarAttention(const AttentionArgs& args);
void scalarQuantizeHead(int8_t* out, uint16_t* scale, const float* in, int headDim);

void scalarRmsNorm(float* y, const float* x, const float* weight, int size, float eps);
void scalarLayerNorm(float* y, const float* x, const float* weight, const float* bias, int size, float eps);
void scalarRotate(float* head, const float* cosSin, int ropeDim);
void scalarRotateHalves(float* head, const float* cosSin, int ropeDim);
void scalarGatedSilu(float* y, const float* gateUp, int size);
void scalarGelu(float* y, const float* x, int size);
void scalarGatedGelu(float* y, const float* upGate, int size);
void scalarAdd(float* x, const float* delta, int64_t count);
void scalarScaleAdd(float* y, const float* x, float scale, const float* delta, int64_t count);
template <DType Type>
void scalarWiden(float* out, const void* in, int64_t count);
template <DType Type>
void scalarNarrow(void* out, const float* in, int64_t count);
template <DType Type>
void scalarRound(float* x, int64_t count);
void scalarExpWeights(float* out, const float* logits, int64_t count, float max, float temperature);
float scalarExpSum(const float* logits, int64_t count, float max);

}  // namespace glm_relay
