#include "cuda/kernels/device.h"
#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

namespace {

// One block per row.
__global__ void rmsNormKernel(float* y, const float* x, const float* weight, int size, float eps) {
  float* partial = reinterpret_cast<float*>(sharedMemory());
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * size;
  float square = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kRowThreads) {
    square = fmaf(x[begin + i], x[begin + i], square);
  }
  const float r = 1.0f / sqrtf(blockSum(square, partial) / static_cast<float>(size) + eps);
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kRowThreads) {
    y[begin + i] = (x[begin + i] * r) * weight[i];
  }
}

__global__ void layerNormKernel(float* y, const float* x, const float* weight, const float* bias, int size,
                                float eps) {
  float* partial = reinterpret_cast<float*>(sharedMemory());
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * size;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kRowThreads) sum += x[begin + i];
  const float mean = blockSum(sum, partial) / static_cast<float>(size);
  float square = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kRowThreads) {
    const float distance = x[begin + i] - mean;
    square = fmaf(distance, distance, square);
  }
  const float r = 1.0f / sqrtf(blockSum(square, partial + kRowWarps) / static_cast<float>(size) + eps);
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kRowThreads) {
    y[begin + i] = fmaf((x[begin + i] - mean) * r, weight[i], bias[i]);
  }
}

dim3 blockPerRow(int rows) { return dim3{static_cast<unsigned int>(rows), 1, 1}; }

}  // namespace

void rmsNorm(cudaStream_t stream, float* y, const float* x, const float* weight, int rows, int size,
             float eps) {
  launch(rmsNormKernel, blockPerRow(rows), kRowThreads, kRowWarps * sizeof(float), stream, y, x, weight, size,
         eps);
}

void layerNorm(cudaStream_t stream, float* y, const float* x, const float* weight, const float* bias,
               int rows, int size, float eps) {
  launch(layerNormKernel, blockPerRow(rows), kRowThreads, 2 * kRowWarps * sizeof(float), stream, y, x, weight,
         bias, size, eps);
}

}  // namespace glm_relay::cuda
