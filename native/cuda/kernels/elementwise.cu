#include "cuda/kernels/device.h"
#include "cuda/kernels/kernels.h"
#include "cuda/kernels/rounded.h"
#include "cuda/kernels/rows.h"

namespace glm_relay::cuda {

namespace {

constexpr int kThreads = 256;

dim3 blocksOf(int64_t count) {
  return dim3{static_cast<unsigned int>((count + kThreads - 1) / kThreads), 1, 1};
}

__device__ __forceinline__ int64_t indexOfThread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + static_cast<int64_t>(threadIdx.x);
}

__global__ void sumKernel(const RowSum sum, int64_t count) {
  enterKernel();
  const int64_t i = indexOfThread();
  if (i < count) sum.x[i] = rounded(fmaf(sum.base[i], sum.scale, sum.delta[i]), sum.dtype);
}

__global__ void widenKernel(float* out, const uint16_t* in, int64_t count, DType dtype) {
  enterKernel();
  const int64_t i = indexOfThread();
  if (i < count) out[i] = valueOf(in[i], dtype);
}

__global__ void narrowKernel(uint16_t* out, const float* in, int64_t count, DType dtype) {
  enterKernel();
  const int64_t i = indexOfThread();
  if (i < count) out[i] = bitsOf(in[i], dtype);
}

__global__ void gatherKernel(float* y, const float* x, const int32_t* rows, int64_t count, int size) {
  enterKernel();
  const int64_t i = indexOfThread();
  if (i < count) y[i] = x[static_cast<int64_t>(rows[i / size]) * size + i % size];
}

constexpr int kEarlyVersion = 90;

}  // namespace

void prepareLaunches() {
  cudaFuncAttributes code = {};
  // Of what the driver compiles from PTX the version is the PTX's, whatever the GPU is.
  kernelsBeginEarly =
      cudaFuncGetAttributes(&code, sumKernel) == cudaSuccess && code.ptxVersion >= kEarlyVersion;
}

void sumRows(cudaStream_t stream, const RowSum& sum, int64_t count) {
  launch(sumKernel, blocksOf(count), kThreads, 0, stream, sum, count);
}

void widen(cudaStream_t stream, float* out, const void* in, int64_t count, DType dtype) {
  if (dtype == DType::kFloat32) {
    cudaMemcpyAsync(out, in, static_cast<size_t>(count) * sizeof(float), cudaMemcpyDeviceToDevice, stream);
    return;
  }
  launch(widenKernel, blocksOf(count), kThreads, 0, stream, out, static_cast<const uint16_t*>(in), count,
         dtype);
}

void narrow(cudaStream_t stream, void* out, const float* in, int64_t count, DType dtype) {
  if (dtype == DType::kFloat32) {
    cudaMemcpyAsync(out, in, static_cast<size_t>(count) * sizeof(float), cudaMemcpyDeviceToDevice, stream);
    return;
  }
  launch(narrowKernel, blocksOf(count), kThreads, 0, stream, static_cast<uint16_t*>(out), in, count, dtype);
}

void gatherRows(cudaStream_t stream, float* y, const float* x, const int32_t* rows, int count, int size) {
  const int64_t values = static_cast<int64_t>(count) * size;
  launch(gatherKernel, blocksOf(values), kThreads, 0, stream, y, x, rows, values, size);
}

}  // namespace glm_relay::cuda
