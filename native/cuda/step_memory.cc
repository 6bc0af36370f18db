#include "cuda/step_memory.h"

#include <algorithm>
#include <cstring>

namespace glm_relay::cuda {

namespace {

constexpr uint64_t kAlignment = 256;

// Blocks of all tables of a step that there is room for from the beginning: as many as the cache has, twice.
constexpr uint64_t kTablesOfCache = 2;

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void StepMemory::reserve(const KvPlan& plan, int stepRows, int tileRows, bool wideTasks,
                         cudaStream_t stream) {
  plan_ = plan;
  tileRows_ = tileRows;
  taskRows_ = attentionTaskRows(plan.headCount, plan.kvHeadCount);
  wideTaskRows_ =
      wideTasks ? attentionTaskRows(plan.headCount, plan.kvHeadCount, kWideTaskQueries) : taskRows_;
  stream_ = stream;
  const uint64_t rowBytes = 5 * sizeof(int32_t) + plan.ropeDim * sizeof(float) + sizeof(AttentionTask);
  const uint64_t bytes = std::max(stepRows, kFewRows) * rowBytes +
                         kTablesOfCache * plan.blockCount * sizeof(int32_t) + 8 * kAlignment;
  pinned_.grow(bytes);
  device_.grow(bytes, stream);
  tasks_.reserve(stepRows);
}

// Rows of one sequence, as many as share a task, cut where tiles end.
void StepMemory::planTasks(const StepRows& rows, const std::vector<int32_t>& tableBegins) {
  tasks_.clear();
  for (int row = 0; row < rows.rowCount;) {
    const int end = std::min({rows.rowCount, row + wideTaskRows_, (row / tileRows_ + 1) * tileRows_});
    const int32_t sequence = rows.sequenceOfRow[row];
    AttentionTask task = {row, 0, tableBegins[sequence], 0};
    for (; row < end && rows.sequenceOfRow[row] == sequence; row++) {
      task.rowCount++;
      task.lastVisible = std::max(task.lastVisible, rows.lastVisibleOfRow[row]);
    }
    tasks_.push_back(task);
  }
}

void StepMemory::begin(const StepRows& rows) {
  std::vector<int32_t> tableBegins;
  std::vector<int32_t> tables;
  std::vector<int32_t> beginners;
  for (int i = 0; i < rows.sequenceCount; i++) {
    const SequenceRows& sequence = rows.sequences[i];
    tableBegins.push_back(static_cast<int32_t>(tables.size()));
    tables.insert(tables.end(), sequence.blockTable.begin(), sequence.blockTable.end());
    if (sequence.startPosition == 0) beginners.push_back(i);
  }
  beginnerCount_ = static_cast<int>(beginners.size());
  planTasks(rows, tableBegins);

  rowCount_ = rows.rowCount;
  struct Part {
    uint64_t* offset;
    const void* data;
    uint64_t count;
    uint64_t size;  // of one
  };
  const uint64_t rowCount = rows.rowCount;
  // Block tables last: they alone have any length where there are few rows.
  const Part parts[] = {
      {&sequenceOfRow_, rows.sequenceOfRow, rowCount, sizeof(int32_t)},
      {&slotOfRow_, rows.slotOfRow, rowCount, sizeof(int32_t)},
      {&lastVisibleOfRow_, rows.lastVisibleOfRow, rowCount, sizeof(int32_t)},
      {&rotations_, rows.rotations, rowCount, plan_.ropeDim * sizeof(float)},
      {&tasksOffset_, tasks_.data(), tasks_.size(), sizeof(AttentionTask)},
      {&tableBegins_, tableBegins.data(), tableBegins.size(), sizeof(int32_t)},
      {&beginners_, beginners.data(), beginners.size(), sizeof(int32_t)},
      {&tables_, tables.data(), tables.size(), sizeof(int32_t)},
  };
  uint64_t bytes = 0;
  for (const Part& part : parts) {
    *part.offset = bytes;
    bytes += aligned(std::max(part.count, uint64_t{kFewRows}) * part.size);
  }
  if (bytes > pinned_.bytes()) {
    pinned_.grow(2 * bytes);
    device_.grow(2 * bytes, stream_);
  }
  for (const Part& part : parts) {
    if (part.count > 0) std::memcpy(pinned_.data() + *part.offset, part.data, part.count * part.size);
  }
  check(cudaMemcpyAsync(device_.as<void>(), pinned_.data(), bytes, cudaMemcpyHostToDevice, stream_),
        "taking the rows of a step");
}

StepMemory::Tasks StepMemory::tasksOf(int row, int rows) const {
  const auto before = [](const AttentionTask& task, int at) { return task.row < at; };
  const auto begin = std::lower_bound(tasks_.begin(), tasks_.end(), row, before);
  const auto end = std::lower_bound(begin, tasks_.end(), row + rows, before);
  Tasks found = {at<AttentionTask>(tasksOffset_) + (begin - tasks_.begin()), static_cast<int>(end - begin), 0,
                 0};
  for (auto task = begin; task != end; ++task) {
    found.lastVisible = std::max(found.lastVisible, task->lastVisible);
    if (task->rowCount > taskRows_) found.wide++;
  }
  return found;
}

}  // namespace glm_relay::cuda
