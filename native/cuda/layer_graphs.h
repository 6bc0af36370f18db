// What the layers of a step enqueue, kept as CUDA graphs: some hundred kernels that the host starts with one
// call. A step of few rows is kept when one like it comes for the second time.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "cuda/device_memory.h"

namespace glm_relay::cuda {

// All that kernels are started with and that differs between steps.
struct LayerGraphKey {
  int rows;
  int tasks;         // of attention
  int wideTasks;     // of them
  int parts;         // of the longest context
  const void* step;  // where the tables of the step lie

  bool operator==(const LayerGraphKey& other) const {
    return std::tie(rows, tasks, wideTasks, parts, step) ==
           std::tie(other.rows, other.tasks, other.wideTasks, other.parts, other.step);
  }
};

class LayerGraphs {
 public:
  LayerGraphs() = default;
  ~LayerGraphs();
  LayerGraphs(const LayerGraphs&) = delete;
  LayerGraphs& operator=(const LayerGraphs&) = delete;

  // Whether the caller is to enqueue the layers of such a step, which may be kept; false: what was kept has
  // been started.
  bool begin(const LayerGraphKey& key, cudaStream_t stream);
  // The layers have been enqueued.
  void end(cudaStream_t stream);
  // Nothing that is enqueued now runs before end().
  bool isKeeping() const { return keeping_ != nullptr; }
  // A step has failed in the middle of its layers.
  void abandon(cudaStream_t stream);

 private:
  struct Kept {
    LayerGraphKey key;
    cudaGraphExec_t graph = nullptr;  // null: seen once
    uint64_t lastUse = 0;
  };
  Kept& find(const LayerGraphKey& key);

  std::vector<Kept> kept_;
  Kept* keeping_ = nullptr;
  uint64_t uses_ = 0;
};

}  // namespace glm_relay::cuda
