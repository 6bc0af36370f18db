// Keys and values into the cache, and attention over it. Head dimensions are at most kMaxHeadDim.
#pragma once

#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

constexpr int kMaxHeadDim = 128;
// Queries (row and head) of a task that read the same keys: those of one warp, and of a wide task, where
// warps share the keys. A row's result does not depend on its task.
constexpr int kTaskQueries = 16;
constexpr int kWideWarps = 4;
constexpr int kWideTaskQueries = kWideWarps * kTaskQueries;
// Keys of a context are summed in parts of so many slots, at absolute places, which are put together in
// order: the same whether blocks of threads share the parts or one computes them all.
constexpr int kPartSlots = 256;

// The cache of one layer, and where sequences lie in it.
struct CacheView {
  uint8_t* keys;
  uint8_t* values;
  const int32_t* tables;       // block tables of all sequences of the step, one behind the other
  const int32_t* tableBegins;  // [sequence]
  KvType type;
  int tilesPerBlock;
  int headCount;
  int kvHeadCount;
  int headDim;
  int64_t tileBytes;
};

struct StoreArgs {
  CacheView cache;
  float* queries;          // of the step's first row at hand
  const float* qkv;        // [rows, q | k | v]
  const float* rotations;  // of the first row at hand: [rows, ropeDim]
  const int32_t* sequenceOfRow;
  const int32_t* slotOfRow;
  const float* queryNorm;  // [headDim], or null
  const float* keyNorm;
  float eps;
  int rows;
  int ropeDim;
  int ropeAxes;
  bool ropeHalves;
};
// Norms and rotates queries and keys; stores keys and values in their slots.
void storeKeysValues(cudaStream_t stream, const StoreArgs& args);

// Stores rows [length, 2 * kvHeadCount * headDim] as the first slots of `count` sequences.
void storePrefix(cudaStream_t stream, const CacheView& cache, const float* keysValues, int length,
                 const int32_t* sequences, int count);

// Consecutive rows of one sequence.
struct AttentionTask {
  int32_t row;  // of the step
  int32_t rowCount;
  int32_t table;        // where the sequence's begins in CacheView::tables
  int32_t lastVisible;  // the largest of its rows
};
// Rows that a task of so many queries may have. One with more rows than there are for kTaskQueries is wide.
constexpr int attentionTaskRows(int headCount, int kvHeadCount, int queries = kTaskQueries) {
  const int group = headCount / kvHeadCount;
  return queries / (group < kTaskQueries ? group : kTaskQueries);
}

struct AttentionArgs {
  CacheView cache;
  float* out;            // row `firstRow` of the step first
  const float* queries;  // of all rows of the step
  const AttentionTask* tasks;
  const int32_t* lastVisibleOfRow;
  int taskCount;
  int wideTasks;  // of them; none where usesTensorCores() says no
  int firstRow;
  int rows;
  // Room for partialFloats(): parts are computed side by side. Null: one after the other.
  float* partials;
  int parts;  // of the longest context
};
// Of a part's sums of one row and head: even, as two floats are read at a time.
constexpr int partialStride(int headDim) { return headDim + 2 + headDim % 2; }
inline int64_t partialFloats(int rows, int headCount, int headDim, int parts) {
  return static_cast<int64_t>(rows) * headCount * parts * partialStride(headDim);
}
// Whether matrix instructions compute attention over such a cache; float32 instructions do where not.
bool usesTensorCores(Path path, KvType type, int headDim);
void attention(cudaStream_t stream, Path path, const AttentionArgs& args);
// Once per device, before the first attention of a path: lets the kernels use as much shared memory as they
// need.
void prepareAttention(Path path);

}  // namespace glm_relay::cuda
