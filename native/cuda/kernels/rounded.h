// float32 and the types of two bytes.
#pragma once

#include "cuda/kernels/device.h"
#include "kernels/kernels.h"

namespace glm_relay::cuda {

__device__ __forceinline__ uint16_t bitsOf(float x, DType dtype) {
  return dtype == DType::kFloat16 ? halfBits(x) : bfloatBits(x);
}
__device__ __forceinline__ float valueOf(uint16_t bits, DType dtype) {
  return dtype == DType::kFloat16 ? halfValue(bits) : bfloatValue(bits);
}
// The nearest number of the type.
__device__ __forceinline__ float rounded(float x, DType dtype) {
  return dtype == DType::kFloat32 ? x : valueOf(bitsOf(x, dtype), dtype);
}

}  // namespace glm_relay::cuda
