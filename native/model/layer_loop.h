// The forward pass of one stage: embedding, layers, final norm, head, sampling. Written once over
// backend.h, so every backend computes the same model. See CANON.md for what each operation means.
#pragma once

#include <memory>
#include <vector>

#include "backend.h"
#include "model/rope.h"
#include "model/sampler.h"
#include "model/thread_pool.h"
#include "model/weights.h"

namespace glm_relay {

class LayerLoop {
 public:
  // Loads the weights and allocates all memory of the stage; throws std::runtime_error or
  // std::bad_alloc. `backend` and `pool` outlive this.
  // `loaded` hears of every piece of the weights that has been read (model/weights.h).
  LayerLoop(const StageConfig& config, const KernelTable& kernels, Backend& backend, ThreadPool& pool,
            const std::function<void(uint64_t bytes)>& loaded);

  // One step; `input` fits the configuration (checked at the door).
  void run(const StepInput& input, StepOutput& output);

  uint64_t weightBytes() const { return weights_.bytes; }
  const std::vector<TensorRounding>& roundings() const { return weights_.roundings; }
  uint64_t workspaceBytes() const { return workspaceBytes_; }

 private:
  std::unique_ptr<DeviceBuffer> workspace(int64_t rows, int64_t columns);
  void allocateWorkspace();
  void placeRows(const StepInput& input);
  void embed(const std::vector<int32_t>& tokenIds);
  void runLayer(int layer, int rowCount);
  void addDelta(int row, int rows, const DeviceBuffer* norm);
  void runHead(const StepInput& input, StepOutput& output);
  void sampleTile(const StepInput& input, const std::vector<int32_t>& rows, StepOutput& output);
  void waitUntilIdle();

  const StageConfig config_;
  const KernelTable& kernels_;
  Backend& backend_;
  ThreadPool& pool_;
  const Rope rope_;
  StageWeights weights_;
  std::unique_ptr<Sampler> sampler_;  // last stage only
  uint64_t workspaceBytes_ = 0;

  // Of a whole step: maxRows rows.
  std::unique_ptr<DeviceBuffer> hidden_;   // the residual stream
  std::unique_ptr<DeviceBuffer> queries_;  // of the layer at hand
  std::vector<int32_t> sequenceOfRow_;
  std::vector<int32_t> positionOfRow_;
  std::vector<float> rotations_;
  std::vector<uint8_t> embedded_;  // first stage only
  // Of one row tile inside a layer.
  std::unique_ptr<DeviceBuffer> normed_;
  std::unique_ptr<DeviceBuffer> qkv_;
  std::unique_ptr<DeviceBuffer> attended_;
  std::unique_ptr<DeviceBuffer> delta_;  // what is added to the residual stream
  std::unique_ptr<DeviceBuffer> gateUp_;
  std::unique_ptr<DeviceBuffer> gated_;
  // Of one tile of sampled rows.
  std::unique_ptr<DeviceBuffer> sampledRows_;
  std::unique_ptr<DeviceBuffer> logits_;
  std::vector<float> hostLogits_;
};

}  // namespace glm_relay
