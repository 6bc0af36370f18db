// What a stage computes on: the CPU, or a GPU through the CUDA library.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "backend.h"
#include "model/thread_pool.h"

namespace glm_relay {

struct GpuChoice {
  std::string library;  // its file
  int index;
  // Compute with the instructions of sm_75, whatever the GPU has.
  bool turing;
};

// No value: the CPU.
using DeviceChoice = std::optional<GpuChoice>;

// For the calling thread. The arguments outlive the backend. Throws std::runtime_error.
std::unique_ptr<Backend> createBackend(const DeviceChoice& device, const KernelTable& kernels,
                                       ThreadPool& pool, std::atomic<uint64_t>& progress);

}  // namespace glm_relay
