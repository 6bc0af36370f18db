#include "cuda/device_memory.h"

#include "backend.h"

namespace glm_relay::cuda {

namespace {

std::string megabytes(uint64_t bytes) { return std::to_string((bytes + 999999) / 1000000) + " MB"; }

}  // namespace

void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  const std::string what = std::string("the GPU failed while ") + doing + ": " + cudaGetErrorString(error);
  // An error that ends a process's use of the GPU stays; every other one is over when it has been looked at.
  cudaGetLastError();
  size_t available = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&available, &total) != cudaSuccess) throw DeviceLost(what);
  throw CudaError(what);
}

DeviceMemory::DeviceMemory(uint64_t bytes, cudaStream_t stream) { grow(bytes, stream); }

DeviceMemory::~DeviceMemory() { release(); }

void DeviceMemory::release() {
  if (memory_ == nullptr) return;
  // What is wrong with the stream is told to those who wait for its results.
  cudaStreamSynchronize(stream_);
  cudaFree(memory_);
  memory_ = nullptr;
  bytes_ = 0;
}

void DeviceMemory::grow(uint64_t bytes, cudaStream_t stream) {
  if (bytes <= bytes_) return;
  release();
  stream_ = stream;
  const cudaError_t error = cudaMalloc(&memory_, bytes);
  if (error != cudaSuccess) {
    memory_ = nullptr;
    size_t available = 0;
    size_t total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&available, &total);
    throw CudaError("the GPU has no room for " + megabytes(bytes) + " more: " + megabytes(available) +
                    " of its " + megabytes(total) + " are free");
  }
  bytes_ = bytes;
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(memory_); }

void PinnedMemory::grow(uint64_t bytes) {
  if (bytes <= bytes_) return;
  cudaFreeHost(memory_);
  memory_ = nullptr;
  bytes_ = 0;
  check(cudaMallocHost(&memory_, bytes), "getting page-locked memory");
  bytes_ = bytes;
}

}  // namespace glm_relay::cuda
