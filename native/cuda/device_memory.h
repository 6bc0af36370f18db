// Memory of a GPU, and memory of the host that a GPU reads by itself. Errors of CUDA become exceptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "backend.h"
#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

class CudaError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws CudaError saying what was being done.
void check(cudaError_t error, const char* doing);

// Freed when the stream has run everything that it was given before.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Its content is anything. Throws DeviceMemoryError with the numbers when there is not enough.
  DeviceMemory(uint64_t bytes, cudaStream_t stream);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // At least so many bytes from now on; what it held is gone if it has to grow.
  void grow(uint64_t bytes, cudaStream_t stream);

  uint64_t bytes() const { return bytes_; }
  template <class Value>
  Value* as() const {
    return static_cast<Value*>(memory_);
  }

 private:
  void release();

  void* memory_ = nullptr;
  uint64_t bytes_ = 0;
  cudaStream_t stream_ = nullptr;
};

// Page-locked memory of the host.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  // As DeviceMemory's; nothing may be copying from it.
  void grow(uint64_t bytes);
  uint64_t bytes() const { return bytes_; }
  uint8_t* data() const { return static_cast<uint8_t*>(memory_); }

 private:
  void* memory_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace glm_relay::cuda
