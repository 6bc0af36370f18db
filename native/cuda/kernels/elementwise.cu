#include "cuda/kernels/device.h"
#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

namespace {

constexpr int kThreads = 256;

dim3 blocksOf(int64_t count) {
  return dim3{static_cast<unsigned int>((count + kThreads - 1) / kThreads), 1, 1};
}

__device__ __forceinline__ int64_t indexOfThread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + static_cast<int64_t>(threadIdx.x);
}

__device__ __forceinline__ uint16_t bitsOf(float x, DType dtype) {
  return dtype == DType::kFloat16 ? halfBits(x) : bfloatBits(x);
}
__device__ __forceinline__ float valueOf(uint16_t bits, DType dtype) {
  return dtype == DType::kFloat16 ? halfValue(bits) : bfloatValue(bits);
}

__device__ __forceinline__ float rounded(float x, DType dtype) {
  return dtype == DType::kFloat32 ? x : valueOf(bitsOf(x, dtype), dtype);
}

__global__ void addKernel(float* x, const float* delta, int64_t count, DType dtype) {
  enterKernel();
  const int64_t i = indexOfThread();
  if (i < count) x[i] = rounded(x[i] + delta[i], dtype);
}

__global__ void scaleAddKernel(float* x, const float* base, float scale, const float* delta, int64_t count,
                               DType dtype) {
  enterKernel();
  const int64_t i = indexOfThread();
  if (i < count) x[i] = rounded(fmaf(base[i], scale, delta[i]), dtype);
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
      cudaFuncGetAttributes(&code, addKernel) == cudaSuccess && code.ptxVersion >= kEarlyVersion;
}

void add(cudaStream_t stream, float* x, const float* delta, int64_t count, DType dtype) {
  launch(addKernel, blocksOf(count), kThreads, 0, stream, x, delta, count, dtype);
}

void scaleAdd(cudaStream_t stream, float* x, const float* base, float scale, const float* delta,
              int64_t count, DType dtype) {
  launch(scaleAddKernel, blocksOf(count), kThreads, 0, stream, x, base, scale, delta, count, dtype);
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
