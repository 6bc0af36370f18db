// What the shared library of the CUDA backend offers to the engine, which opens it at run time. Both are
// built from the same sources: an interface of another version is refused.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "model/thread_pool.h"

namespace glm_relay {

// Goes up with every change of backend.h, of this file, or of what their types consist of.
constexpr uint32_t kCudaInterface = 2;

struct CudaDevice {
  std::string name;
  int major;  // compute capability
  int minor;
  uint64_t bytes;
};

struct CudaBackendRequest {
  int device;
  // Use the instructions of sm_75 only, which every GPU has.
  bool turing;
  // All outlive the backend.
  const KernelTable* kernels;
  ThreadPool* pool;
  std::atomic<uint64_t>* progress;
};

struct CudaLibrary {
  uint32_t interface;
  // Throws std::runtime_error where there is no driver, or none that is new enough.
  std::vector<CudaDevice> (*devices)();
  // Of its memory. The process takes some of it, here or later, for CUDA's own use: only of the device that
  // it is going to compute on.
  uint64_t (*freeBytes)(int device);
  // Throws std::runtime_error for a device that does not exist or is too old. The backend is for the calling
  // thread.
  std::unique_ptr<Backend> (*create)(const CudaBackendRequest& request);
};

// The library's only symbol.
constexpr const char* kCudaLibrarySymbol = "glmRelayCudaLibrary";
using CudaLibraryFunction = const CudaLibrary* (*)();

}  // namespace glm_relay
