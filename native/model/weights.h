// The weights of one stage in its backend's memory. Only this stage's tensors are opened, one after the
// other, and of each no more than a slice stays mapped: loading takes the final size and little more.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backend.h"
#include "model/mapped_tensor.h"
#include "model/tensor_loader.h"

namespace glm_relay {

struct NormWeights {
  std::unique_ptr<DeviceBuffer> weight;
  std::unique_ptr<DeviceBuffer> bias;  // of a LayerNorm
};

// Null: the family has no such tensor.
struct LayerWeights {
  NormWeights attentionNorm;
  std::unique_ptr<DeviceMatrix> qkvWeight;
  std::unique_ptr<DeviceBuffer> qkvBias;
  std::unique_ptr<DeviceBuffer> queryNorm;
  std::unique_ptr<DeviceBuffer> keyNorm;
  std::unique_ptr<DeviceMatrix> attentionOut;
  std::unique_ptr<DeviceBuffer> attentionOutBias;
  std::unique_ptr<DeviceBuffer> attentionOutNorm;
  NormWeights ffnNorm;
  std::unique_ptr<DeviceMatrix> ffnUp;
  std::unique_ptr<DeviceBuffer> ffnUpBias;
  std::unique_ptr<DeviceMatrix> ffnDown;
  std::unique_ptr<DeviceBuffer> ffnDownBias;
  std::unique_ptr<DeviceBuffer> ffnOutNorm;
  std::unique_ptr<ExpertLayer> experts;
  // Keys and values of a prefix encoder: [length, 2 * kvColumns].
  std::unique_ptr<DeviceBuffer> prefix;
};

struct StageWeights {
  std::vector<LayerWeights> layers;
  // Stay in host memory as they lie in the file: a step reads one row of each per token.
  std::unique_ptr<MappedTable> embedding;
  std::unique_ptr<MappedTable> positionEmbedding;
  std::unique_ptr<MappedTable> blockPositionEmbedding;
  NormWeights finalNorm;
  // Only the rows of ids that exist (tokenCount): the others could never be drawn.
  std::unique_ptr<DeviceMatrix> head;
  // Everything above that is in the backend's memory, which the mapped tables are where that is the host's.
  uint64_t bytes = 0;
  // Of every matrix that was rounded, in the order of loading.
  std::vector<TensorRounding> roundings;
};

// Stored bytes that loadWeights reads.
uint64_t storedBytes(const StageConfig& config);

// Takes matrices from `cache`, or gives it those that were made; null: neither.
// Calls `loaded` with the stored bytes read since the last call.
// Throws std::runtime_error naming the tensor and its file.
StageWeights loadWeights(const StageConfig& config, const KernelTable& kernels, Backend& backend,
                         WeightCache* cache, const std::function<void(uint64_t bytes)>& loaded);

}  // namespace glm_relay
