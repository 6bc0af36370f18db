// The weights of one stage in its backend's memory. Only this stage's tensors are opened, one after the
// other, and of each no more than a slice stays mapped: loading takes the final size and little more.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "model/mapped_tensor.h"

namespace glm_relay {

struct LayerWeights {
  std::unique_ptr<DeviceBuffer> attentionNorm;
  std::unique_ptr<DeviceMatrix> qkvWeight;
  std::unique_ptr<DeviceBuffer> qkvBias;  // null: none
  std::unique_ptr<DeviceMatrix> attentionOut;
  std::unique_ptr<DeviceBuffer> attentionOutNorm;  // null: none
  std::unique_ptr<DeviceBuffer> ffnNorm;
  std::unique_ptr<DeviceMatrix> ffnGateUp;
  std::unique_ptr<DeviceMatrix> ffnDown;
  std::unique_ptr<DeviceBuffer> ffnOutNorm;  // null: none
};

struct TensorRounding {
  std::string role;
  RoundingError error;
};

struct StageWeights {
  std::vector<LayerWeights> layers;
  // Stays in host memory as it lies in the file: a step reads one row per token.
  std::unique_ptr<MappedTensor> embedding;
  std::unique_ptr<DeviceBuffer> finalNorm;
  // Only the rows of ids that exist (tokenCount): the others could never be drawn.
  std::unique_ptr<DeviceMatrix> head;
  // Everything above, the mapped embedding included.
  uint64_t bytes = 0;
  // Of every matrix that was rounded, in the order of loading.
  std::vector<TensorRounding> roundings;
};

// Stored bytes that loadWeights reads.
uint64_t storedBytes(const StageConfig& config);

// Calls `loaded` with the stored bytes read since the last call.
// Throws std::runtime_error naming the tensor and its file.
StageWeights loadWeights(const StageConfig& config, const KernelTable& kernels, Backend& backend,
                         const std::function<void(uint64_t bytes)>& loaded);

}  // namespace glm_relay
