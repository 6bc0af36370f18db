// What several kernels make of one value.
#pragma once

#include "cuda/kernels/device.h"

namespace glm_relay::cuda {

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
// gelu by tanh is x / (1 + exp(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ __forceinline__ float geluTanh(float x) {
  const float inner = fmaf(x * x, 0.044715f, 1.0f);
  return x / (1.0f + expf((x * -1.59576912f) * inner));
}
__device__ __forceinline__ float geluErf(float x) { return 0.5f * x * (1.0f + erff(x * 0.707106781f)); }

}  // namespace glm_relay::cuda
