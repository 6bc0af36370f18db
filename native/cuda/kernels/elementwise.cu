#include "cuda/kernels/activation.h"
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

__global__ void gatedSiluKernel(float* y, const float* x, int64_t count, int size) {
  const int64_t i = indexOfThread();
  if (i >= count) return;
  const float* gate = x + i / size * 2 * size + i % size;
  y[i] = silu(gate[0]) * gate[size];
}

__global__ void geluKernel(float* y, const float* x, int64_t count) {
  const int64_t i = indexOfThread();
  if (i < count) y[i] = geluTanh(x[i]);
}

__global__ void gatedGeluKernel(float* y, const float* x, int64_t count, int size) {
  const int64_t i = indexOfThread();
  if (i >= count) return;
  const float* up = x + i / size * 2 * size + i % size;
  y[i] = up[0] * geluErf(up[size]);
}

__global__ void addKernel(float* x, const float* delta, int64_t count) {
  const int64_t i = indexOfThread();
  if (i < count) x[i] += delta[i];
}

__global__ void scaleAddKernel(float* x, const float* base, float scale, const float* delta, int64_t count) {
  const int64_t i = indexOfThread();
  if (i < count) x[i] = fmaf(base[i], scale, delta[i]);
}

__device__ __forceinline__ uint16_t bitsOf(float x, DType dtype) {
  return dtype == DType::kFloat16 ? halfBits(x) : bfloatBits(x);
}
__device__ __forceinline__ float valueOf(uint16_t bits, DType dtype) {
  return dtype == DType::kFloat16 ? halfValue(bits) : bfloatValue(bits);
}

__global__ void roundKernel(float* x, int64_t count, DType dtype) {
  const int64_t i = indexOfThread();
  if (i < count) x[i] = valueOf(bitsOf(x[i], dtype), dtype);
}

__global__ void widenKernel(float* out, const uint16_t* in, int64_t count, DType dtype) {
  const int64_t i = indexOfThread();
  if (i < count) out[i] = valueOf(in[i], dtype);
}

__global__ void narrowKernel(uint16_t* out, const float* in, int64_t count, DType dtype) {
  const int64_t i = indexOfThread();
  if (i < count) out[i] = bitsOf(in[i], dtype);
}

__global__ void gatherKernel(float* y, const float* x, const int32_t* rows, int64_t count, int size) {
  const int64_t i = indexOfThread();
  if (i < count) y[i] = x[static_cast<int64_t>(rows[i / size]) * size + i % size];
}

}  // namespace

void gatedSilu(cudaStream_t stream, float* y, const float* x, int rows, int size) {
  const int64_t count = static_cast<int64_t>(rows) * size;
  launch(gatedSiluKernel, blocksOf(count), kThreads, 0, stream, y, x, count, size);
}

void gelu(cudaStream_t stream, float* y, const float* x, int rows, int size) {
  const int64_t count = static_cast<int64_t>(rows) * size;
  launch(geluKernel, blocksOf(count), kThreads, 0, stream, y, x, count);
}

void gatedGelu(cudaStream_t stream, float* y, const float* x, int rows, int size) {
  const int64_t count = static_cast<int64_t>(rows) * size;
  launch(gatedGeluKernel, blocksOf(count), kThreads, 0, stream, y, x, count, size);
}

void add(cudaStream_t stream, float* x, const float* delta, int64_t count) {
  launch(addKernel, blocksOf(count), kThreads, 0, stream, x, delta, count);
}

void scaleAdd(cudaStream_t stream, float* x, const float* base, float scale, const float* delta,
              int64_t count) {
  launch(scaleAddKernel, blocksOf(count), kThreads, 0, stream, x, base, scale, delta, count);
}

void roundTo(cudaStream_t stream, float* x, int64_t count, DType dtype) {
  if (dtype == DType::kFloat32) return;
  launch(roundKernel, blocksOf(count), kThreads, 0, stream, x, count, dtype);
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
