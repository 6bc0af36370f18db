#include "cuda/kernels/device.h"
#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

namespace {

// One block per row.
__global__ void mixKernel(float* y, const float* parts, const ExpertPart* chosen, int perToken, int size) {
  const int64_t row = blockIdx.x;
  const ExpertPart* ofRow = chosen + row * perToken;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kRowThreads) {
    float sum = 0.0f;
    for (int rank = 0; rank < perToken; rank++) {
      sum = fmaf(parts[static_cast<int64_t>(ofRow[rank].slot) * size + i], ofRow[rank].weight, sum);
    }
    y[row * size + i] = sum;
  }
}

}  // namespace

void mixParts(cudaStream_t stream, float* y, const float* parts, const ExpertPart* chosen, int rows,
              int perToken, int size) {
  launch(mixKernel, dim3{static_cast<unsigned int>(rows), 1, 1}, kRowThreads, 0, stream, y, parts, chosen,
         perToken, size);
}

}  // namespace glm_relay::cuda
