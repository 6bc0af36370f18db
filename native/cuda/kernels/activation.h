// What several kernels make of one value.
#pragma once

#include "cuda/kernels/device.h"

namespace glm_relay::cuda {

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

}  // namespace glm_relay::cuda
