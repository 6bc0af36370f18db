#include "cuda/device_memory.h"

#include "backend.h"

namespace glm_relay::cuda {

namespace {

std::string megabytes(uint64_t bytes) { return std::to_string((bytes + 999999) / 1000000) + " MB"; }

// What is told of a GPU that has no room for so many bytes more: that of the calling thread.
DeviceMemoryError noRoom(uint64_t bytes) {
  cudaGetLastError();
  int device = 0;
  cudaDeviceProp properties = {};
  size_t available = 0;
  size_t total = 0;
  cudaGetDevice(&device);
  cudaGetDeviceProperties(&properties, device);
  cudaMemGetInfo(&available, &total);
  return DeviceMemoryError("it takes " + megabytes(bytes) + " more, " + megabytes(available) + " of the " +
                           megabytes(total) + " of GPU " + std::to_string(device) + " (" + properties.name +
                           ") are free");
}

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

DeviceMemory::DeviceMemory(uint64_t bytes, cudaStream_t stream, DeviceArena* arena) {
  void* part = arena == nullptr || bytes == 0 ? nullptr : arena->take(bytes);
  if (part == nullptr) {
    grow(bytes, stream);
    return;
  }
  memory_ = part;
  bytes_ = bytes;
  stream_ = stream;
  owned_ = false;
}

DeviceMemory::~DeviceMemory() { release(); }

void DeviceMemory::release() {
  if (memory_ == nullptr) return;
  // What is wrong with the stream is told to those who wait for its results.
  cudaStreamSynchronize(stream_);
  if (owned_) cudaFree(memory_);
  owned_ = true;
  memory_ = nullptr;
  bytes_ = 0;
}

void DeviceMemory::grow(uint64_t bytes, cudaStream_t stream) {
  if (bytes <= bytes_) return;
  release();
  stream_ = stream;
  const cudaError_t error = cudaMalloc(&memory_, bytes);
  if (error != cudaSuccess) memory_ = nullptr;
  if (error == cudaErrorMemoryAllocation) throw noRoom(bytes);
  check(error, "getting memory");
  bytes_ = bytes;
}

void DeviceArena::reserve(uint64_t bytes, cudaStream_t stream) {
  blocks_.push_back(std::make_unique<DeviceMemory>(bytes, stream));
  used_ = 0;
}

void* DeviceArena::take(uint64_t bytes) {
  if (blocks_.empty() || used_ + taken(bytes) > blocks_.back()->bytes()) return nullptr;
  uint8_t* part = blocks_.back()->as<uint8_t>() + used_;
  used_ += taken(bytes);
  return part;
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
