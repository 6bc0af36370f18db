// What a step's kernels must know of its rows, brought to the GPU in one copy from page-locked memory.
#pragma once

#include <vector>

#include "backend.h"
#include "cuda/device_memory.h"
#include "cuda/kernels/attention.h"

namespace glm_relay::cuda {

class StepMemory {
 public:
  // Room for steps of so many rows, which pass a layer `tileRows` at a time and share attention's tasks as
  // far as wide ones have use for (`wideTasks`). Block tables have no bound that would be a reasonable one,
  // as sequences may share their blocks: a step whose tables find no room lets it grow.
  void reserve(const KvPlan& plan, int stepRows, int tileRows, bool wideTasks, cudaStream_t stream);
  // The rows that follow. What was copied for the rows before must have arrived.
  void begin(const StepRows& rows);
  // On the device.
  uint64_t bytes() const { return device_.bytes(); }

  const int32_t* sequenceOfRow() const { return at<int32_t>(sequenceOfRow_); }
  const int32_t* slotOfRow() const { return at<int32_t>(slotOfRow_); }
  const int32_t* lastVisibleOfRow() const { return at<int32_t>(lastVisibleOfRow_); }
  const float* rotations() const { return at<float>(rotations_); }
  const int32_t* tableBegins() const { return at<int32_t>(tableBegins_); }
  const int32_t* tables() const { return at<int32_t>(tables_); }
  // Sequences that begin with this step.
  const int32_t* beginners() const { return at<int32_t>(beginners_); }
  int beginnerCount() const { return beginnerCount_; }

  // The tasks of the rows [row, row + rows), which begin and end at borders of tiles.
  struct Tasks {
    const AttentionTask* first;
    int count;
    int wide;  // of them
    int lastVisible;
  };
  Tasks tasksOf(int row, int rows) const;

 private:
  template <class Value>
  const Value* at(uint64_t offset) const {
    return reinterpret_cast<const Value*>(device_.as<uint8_t>() + offset);
  }
  void planTasks(const StepRows& rows, const std::vector<int32_t>& tableBegins);

  KvPlan plan_ = {};
  int tileRows_ = 1;
  int taskRows_ = 1;
  int wideTaskRows_ = 1;
  cudaStream_t stream_ = nullptr;
  PinnedMemory pinned_;
  DeviceMemory device_;
  std::vector<AttentionTask> tasks_;
  uint64_t sequenceOfRow_ = 0;
  uint64_t slotOfRow_ = 0;
  uint64_t lastVisibleOfRow_ = 0;
  uint64_t rotations_ = 0;
  uint64_t tableBegins_ = 0;
  uint64_t tables_ = 0;
  uint64_t beginners_ = 0;
  uint64_t tasksOffset_ = 0;
  int beginnerCount_ = 0;
};

}  // namespace glm_relay::cuda
