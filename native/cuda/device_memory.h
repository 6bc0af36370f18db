// Memory of a GPU, and memory of the host that a GPU reads by itself. Errors of CUDA become exceptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

class CudaError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws CudaError saying what was being done; DeviceLost when the GPU does not answer any more.
void check(cudaError_t error, const char* doing);

class DeviceArena;

// Freed when the stream has run everything that it was given before.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // Its content is anything. Throws DeviceMemoryError with the numbers when there is not enough.
  // It is the arena's where that has room, and its own where there is no arena or no room in it.
  DeviceMemory(uint64_t bytes, cudaStream_t stream, DeviceArena* arena = nullptr);
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
  bool owned_ = true;
};

// One allocation for many things that stay for as long as it does: CUDA gives out pages of 2 MiB, of which
// every allocation of more than half of one would leave the rest unused.
class DeviceArena {
 public:
  // What something of so many bytes takes of it.
  static uint64_t taken(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
  // From now on it has so many bytes; what is left of those before is not given out any more.
  void reserve(uint64_t bytes, cudaStream_t stream);
  // Null where it has not so many bytes left.
  void* take(uint64_t bytes);

 private:
  static constexpr uint64_t kAlignment = 256;
  std::vector<std::unique_ptr<DeviceMemory>> blocks_;
  uint64_t used_ = 0;  // of the last block
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
