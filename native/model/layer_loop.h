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
  // std::bad_alloc. `backend` and `pool` outlive this; `cache` (null: none) is used while it is made.
  // `loaded` hears of every piece of the weights that has been read (model/weights.h).
  LayerLoop(const StageConfig& config, const KernelTable& kernels, Backend& backend, ThreadPool& pool,
            WeightCache* cache, const std::function<void(uint64_t bytes)>& loaded);

  // One step; `input` fits the configuration, and its slice what is parked (checked at the door).
  void run(const StepInput& input, StepOutput& output);

  uint64_t weightBytes() const { return weights_.bytes; }
  const std::vector<TensorRounding>& roundings() const { return weights_.roundings; }
  uint64_t workspaceBytes() const { return workspaceBytes_; }

 private:
  // What stands for a row's place: of text as it is read, and within what is generated (2-D families).
  struct RowPosition {
    int position;
    int blockPosition;
  };
  std::unique_ptr<DeviceBuffer> workspace(int64_t rows, int64_t columns);
  void allocateWorkspace();
  void runSlice(const SliceInput& slice, StepOutput& output);
  void runRows(const StepInput& input, StepOutput& output);
  void placeRows(const SequenceRows* sequences, size_t sequenceCount, int rowCount);
  void embed(DeviceBuffer& hidden, const std::vector<int32_t>& tokenIds);
  std::vector<uint8_t> rowsOut(const DeviceBuffer& hidden, int rowCount);
  void runLayer(DeviceBuffer& hidden, int layer, int rowCount);
  void runFfn(const LayerWeights& weights, int rows);
  void norm(DeviceBuffer& y, const DeviceBuffer& x, int row, int rows, const NormWeights& weights);
  void addDelta(DeviceBuffer& hidden, int row, int rows, const DeviceBuffer* outNorm, DType dtype);
  bool hasExperts() const { return config_.shape.experts.count > 0; }
  void runHead(const StepInput& input, StepOutput& output);
  // What has been drawn so far, per sample request.
  using Drawn = std::vector<std::vector<TokenResult>>;
  void sampleTile(const StepInput& input, const std::vector<int32_t>& rows, Drawn& drawn, StepOutput& output);
  void waitUntilIdle();

  const StageConfig config_;
  const KernelTable& kernels_;
  Backend& backend_;
  ThreadPool& pool_;
  const int rowTile_;
  const Rope rope_;
  StageWeights weights_;
  std::unique_ptr<Sampler> sampler_;  // last stage only
  uint64_t workspaceBytes_ = 0;

  // The residual stream of the context that is read in slices, kept between them: contextRows rows.
  std::unique_ptr<DeviceBuffer> parked_;
  // Of a whole step: maxRows rows.
  std::unique_ptr<DeviceBuffer> hidden_;   // the residual stream
  std::unique_ptr<DeviceBuffer> queries_;  // of the layer at hand
  std::vector<int32_t> sequenceOfRow_;
  std::vector<int32_t> slotOfRow_;
  std::vector<int32_t> lastVisibleOfRow_;
  std::vector<RowPosition> positionOfRow_;
  std::vector<float> rotations_;
  std::vector<uint8_t> embedded_;  // first stage only
  // Of one row tile inside a layer.
  std::unique_ptr<DeviceBuffer> normed_;
  std::unique_ptr<DeviceBuffer> qkv_;
  std::unique_ptr<DeviceBuffer> attended_;
  std::unique_ptr<DeviceBuffer> delta_;     // what is added to the residual stream
  std::unique_ptr<DeviceBuffer> ffnInner_;  // in front of the activation
  std::unique_ptr<DeviceBuffer> activated_;
  std::unique_ptr<DeviceBuffer> mixed_;  // of the experts; only where there are some
  // Of one tile of sampled rows.
  std::unique_ptr<DeviceBuffer> sampledRows_;
  std::unique_ptr<DeviceBuffer> logits_;
  std::vector<float> hostLogits_;
};

}  // namespace glm_relay
