// Sequences of several lengths in a paged cache, ready to be attended to.
#pragma once

#include <memory>

#include "check.h"
#include "cuda/kernels/attention.h"

namespace glm_relay::cuda {

struct AttentionShape {
  KvType type;
  int headCount;
  int kvHeadCount;
  int headDim;
  // Of each sequence: slots that were stored before this step, and rows of it.
  std::vector<std::pair<int, int>> sequences;
  // Rows of a sequence before this many see all of them, as a prefix-LM's context; 0: none do.
  int contextLength;
  int ropeDim = 0;
  int ropeAxes = 1;
  bool ropeHalves = false;
  bool headNorms = false;
  // Keys are the larger the further behind they stand, so that the last ones count most.
  bool growingKeys = false;
};

class AttentionCase {
 public:
  AttentionCase(AttentionShape shape, uint64_t seed);

  // Stores the step's rows, and queries and cache as they are then.
  void store();
  // Rows that a task may have.
  int mostRows(Path path) const;
  // Attention of rows [first, first + count), in tasks of at most `taskRows` rows, and of mostRows().
  std::vector<float> attend(Path path, int first, int count, int taskRows, bool sideBySide) const;

  int rows() const { return static_cast<int>(slotOfRow_.size()); }
  int columns() const { return shape_.headCount * shape_.headDim; }
  std::string name() const;
  std::vector<double> expectedQueries() const;
  std::vector<float> queries() const { return queries_->read(); }
  void setQueries(const std::vector<float>& queries) {
    queries_ = std::make_unique<OnDevice<float>>(queries);
  }
  // With the keys and values as the cache's type rounds them.
  std::vector<double> expected(const std::vector<float>& queries) const;

 private:
  std::vector<double> placed(const float* head, const std::vector<float>* norm, int row) const;
  std::vector<double> stored(const std::vector<double>& head) const;
  CacheView view() const;

  AttentionShape shape_;
  int tilesPerBlock_ = 2;
  int64_t tileBytes_;
  std::vector<float> qkv_;  // of all slots of all sequences, those before the step first
  std::vector<float> rotations_;
  std::vector<float> queryNorm_;
  std::vector<float> keyNorm_;
  std::vector<int32_t> sequenceOfRow_;
  std::vector<int32_t> slotOfRow_;
  std::vector<int32_t> lastVisibleOfRow_;
  std::vector<int> firstOfSequence_;  // in qkv_
  std::vector<int> indexOfRow_;       // in qkv_
  std::vector<int32_t> tables_;
  std::vector<int32_t> tableBegins_;
  std::unique_ptr<OnDevice<uint8_t>> keys_;
  std::unique_ptr<OnDevice<uint8_t>> valuesOnDevice_;
  std::unique_ptr<OnDevice<int32_t>> tablesOnDevice_;
  std::unique_ptr<OnDevice<int32_t>> beginsOnDevice_;
  std::unique_ptr<OnDevice<float>> queries_;
};

}  // namespace glm_relay::cuda
