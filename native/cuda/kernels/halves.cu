#include "cuda/kernels/device.h"
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/scaled_halves.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

namespace {

// One block per row.
__global__ void toHalvesKernel(uint16_t* out, uint16_t* low, float* scales, const float* x, int k,
                               int paddedK) {
  uint32_t* partial = reinterpret_cast<uint32_t*>(sharedMemory());
  const float* row = x + static_cast<int64_t>(blockIdx.x) * k;
  uint32_t largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < k; i += kRowThreads) {
    const uint32_t magnitude = magnitudeBits(row[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = warpMax(largest);
  if (laneOfThread() == 0) partial[warpOfThread()] = largest;
  __syncthreads();
  for (int i = 0; i < kRowWarps; i++) largest = partial[i] > largest ? partial[i] : largest;

  const RowFactor of(largest);
  const int target = static_cast<int>(blockIdx.x);
  for (int i = 2 * static_cast<int>(threadIdx.x); i < paddedK; i += 2 * kRowThreads) {
    uint32_t pair = 0;
    uint32_t lowPair = 0;
    for (int j = 0; j < 2; j++) {
      const float value = i + j < k ? row[i + j] * of.factor : 0.0f;
      const uint32_t half = halfBits(value);
      pair |= half << (16 * j);
      lowPair |= static_cast<uint32_t>(halfBits(value - halfValue(static_cast<uint16_t>(half)))) << (16 * j);
    }
    const int64_t at = halfIndex(target, i, paddedK);
    *reinterpret_cast<uint32_t*>(out + at) = pair;
    if (low != nullptr) *reinterpret_cast<uint32_t*>(low + at) = lowPair;
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = of.scale;
}

}  // namespace

void toHalves(cudaStream_t stream, uint16_t* out, uint16_t* low, float* scales, const float* x, int rows,
              int k, int paddedK) {
  launch(toHalvesKernel, dim3{static_cast<unsigned int>(rows), 1, 1}, kRowThreads,
         kRowWarps * sizeof(uint32_t), stream, out, low, scales, x, k, paddedK);
}

}  // namespace glm_relay::cuda
