// The CPU backend's KV cache and attention.
//
// Keys and values of a layer: [block][tile][KV head][tile of 16 positions]. In a key tile the 16 keys
// lie side by side for each dimension, in a value tile the dimensions for each position, so that the
// kernel's lanes are keys in the one and dimensions in the other.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_backend.h"

namespace glm_relay {

namespace {

// Attention and the storing of keys (one rotated, one rounded key) take turns with this memory.
size_t threadScratchFloats(const KvPlan& plan) { return attentionScratchFloats(plan.headDim); }

const float* floats(const DeviceBuffer& buffer) {
  return static_cast<const HostBuffer&>(buffer).memory.floats();
}
float* floats(DeviceBuffer& buffer) { return static_cast<HostBuffer&>(buffer).memory.floats(); }

}  // namespace

void CpuBackend::allocateKvCache(const KvPlan& plan) {
  plan_ = plan;
  scoreScale_ = 1.0f / std::sqrt(static_cast<float>(plan.headDim));
  keys_ = std::make_unique<HostMemory>(plan.layerBytes() * plan.layerCount, HostMemory::kLazy);
  values_ = std::make_unique<HostMemory>(plan.layerBytes() * plan.layerCount, HostMemory::kLazy);
  scratch_ = std::make_unique<HostMemory>(attentionScratchBytes(), HostMemory::kReady);
}

void CpuBackend::copyBlock(int from, int to) {
  const uint64_t bytes = plan_.blockBytes();
  pool_.forEach(plan_.layerCount, [&](int64_t layer, int) {
    for (uint8_t* blocks : {keysOf(static_cast<int>(layer)), valuesOf(static_cast<int>(layer))}) {
      std::memcpy(blocks + to * bytes, blocks + from * bytes, bytes);
    }
  });
}

float* CpuBackend::threadScratch(int thread) const {
  return scratch_->floats() + thread * threadScratchFloats(plan_);
}

uint64_t CpuBackend::attentionScratchBytes() const {
  return threadScratchFloats(plan_) * sizeof(float) * pool_.threads();
}

void CpuBackend::storeKeysValues(DeviceBuffer& queries, const DeviceBuffer& qkv, int layer, int row, int rows,
                                 const HeadNorms& norms) {
  const int64_t queryColumns = static_cast<int64_t>(plan_.headCount) * plan_.headDim;
  const int64_t qkvColumns = queryColumns + 2 * static_cast<int64_t>(plan_.kvHeadCount) * plan_.headDim;
  pool_.forEach(rows, [&](int64_t i, int thread) {
    storeRow(floats(queries) + (row + i) * queryColumns, floats(qkv) + i * qkvColumns, layer,
             row + static_cast<int>(i), thread, norms);
  });
}

// Each axis of position turns dimensions of its own, one behind the other.
void CpuBackend::rotate(float* head, const float* rotation) const {
  const int width = plan_.ropeDim / plan_.ropeAxes;
  const auto kernel = plan_.ropeHalves ? kernels_.rotateHalves : kernels_.rotate;
  for (int axis = 0; axis < plan_.ropeAxes; axis++) {
    kernel(head + axis * width, rotation + axis * width, width);
  }
}

CpuBackend::SlotTiles CpuBackend::tilesOf(const SequenceRows& sequence, int slot, int layer, int head) const {
  const int tile = slot / kKeyTile;
  const size_t block = static_cast<size_t>(sequence.blockTable[tile / plan_.tilesPerBlock]);
  const size_t tileIndex = (block * plan_.tilesPerBlock + tile % plan_.tilesPerBlock) * plan_.kvHeadCount;
  const size_t offset = (tileIndex + head) * plan_.tileBytes();
  return {keysOf(layer) + offset, valuesOf(layer) + offset, slot % kKeyTile};
}

void CpuBackend::storePrefix(const DeviceBuffer& keysValues, int layer) {
  const int headDim = plan_.headDim;
  const int64_t columns = plan_.kvColumns();
  for (int i = 0; i < step_.sequenceCount; i++) {
    const SequenceRows& sequence = step_.sequences[i];
    if (sequence.startPosition > 0) continue;
    pool_.forEach(plan_.prefixLength, [&](int64_t slot, int thread) {
      uint8_t* rounded = reinterpret_cast<uint8_t*>(threadScratch(thread));
      const float* row = floats(keysValues) + slot * 2 * columns;
      for (int head = 0; head < plan_.kvHeadCount; head++) {
        const SlotTiles to = tilesOf(sequence, static_cast<int>(slot), layer, head);
        storeSlot(to.keys, to.values, to.place, row + head * headDim, row + columns + head * headDim,
                  rounded);
      }
    });
  }
}

// Norms, rotates and stores one row: query heads to `queries`, keys and values to their slot.
void CpuBackend::storeRow(float* queries, const float* qkv, int layer, int row, int thread,
                          const HeadNorms& norms) {
  const int headDim = plan_.headDim;
  const float* rotation = step_.rotations + static_cast<int64_t>(row) * plan_.ropeDim;
  const int64_t queryColumns = static_cast<int64_t>(plan_.headCount) * headDim;
  const auto place = [&](float* to, const float* from, const DeviceBuffer* norm) {
    if (norm == nullptr) {
      std::memcpy(to, from, headDim * sizeof(float));
    } else {
      kernels_.rmsNorm(to, from, floats(*norm), headDim, norms.eps);
    }
    rotate(to, rotation);
  };
  for (int head = 0; head < plan_.headCount; head++) {
    place(queries + head * headDim, qkv + head * headDim, norms.query);
  }

  float* rotated = threadScratch(thread);
  const SequenceRows& sequence = step_.sequences[step_.sequenceOfRow[row]];
  const int slot = step_.slotOfRow[row];
  for (int head = 0; head < plan_.kvHeadCount; head++) {
    const float* key = qkv + queryColumns + static_cast<int64_t>(head) * headDim;
    const float* value = key + static_cast<int64_t>(plan_.kvHeadCount) * headDim;
    place(rotated, key, norms.key);
    uint8_t* rounded = reinterpret_cast<uint8_t*>(rotated + headDim);
    const SlotTiles to = tilesOf(sequence, slot, layer, head);
    storeSlot(to.keys, to.values, to.place, rotated, value, rounded);
  }
}

// Rounds a key and a value to the cache's type and puts them into one slot of their tiles, where the
// slots of a key tile are interleaved. `rounded` is room for one rounded key.
void CpuBackend::storeSlot(uint8_t* keyTile, uint8_t* valueTile, int slot, const float* key,
                           const float* value, uint8_t* rounded) const {
  const int headDim = plan_.headDim;
  size_t elementBytes = 1;
  if (plan_.type == KvType::kInt8) {
    uint16_t scale;
    const size_t scaleOffset = static_cast<size_t>(kKeyTile) * headDim + slot * sizeof(scale);
    kernels_.quantizeHead(reinterpret_cast<int8_t*>(rounded), &scale, key, headDim);
    std::memcpy(keyTile + scaleOffset, &scale, sizeof(scale));
    kernels_.quantizeHead(reinterpret_cast<int8_t*>(valueTile) + slot * headDim, &scale, value, headDim);
    std::memcpy(valueTile + scaleOffset, &scale, sizeof(scale));
  } else {
    const int dtype = static_cast<int>(plan_.type);
    elementBytes = dtypeBytes(static_cast<DType>(dtype));
    kernels_.narrow[dtype](rounded, key, headDim);
    kernels_.narrow[dtype](valueTile + slot * headDim * elementBytes, value, headDim);
  }
  for (int d = 0; d < headDim; d++) {
    std::memcpy(keyTile + (d * kKeyTile + slot) * elementBytes, rounded + d * elementBytes, elementBytes);
  }
}

// Cuts the rows [row, row + rows) into calls of the kernel. Rows and query heads that read the same
// keys share a call, which widens each tile once; with fewer calls than threads, heads are split.
void CpuBackend::planAttention(int row, int rows) {
  const int group = plan_.headCount / plan_.kvHeadCount;
  int heads = std::min(group, kMaxQueries);
  int rowsPerTask = std::max(1, kMaxQueries / heads);
  while (rowsPerTask > 1 && (rows / rowsPerTask) * plan_.kvHeadCount < pool_.threads()) rowsPerTask /= 2;
  while (heads > 1 &&
         ((rows + rowsPerTask - 1) / rowsPerTask) * (plan_.headCount / heads) < pool_.threads()) {
    heads = (heads + 1) / 2;
  }

  tasks_.clear();
  for (int begin = row; begin < row + rows;) {
    int end = begin + 1;
    while (end < row + rows && end - begin < rowsPerTask &&
           step_.sequenceOfRow[end] == step_.sequenceOfRow[begin]) {
      end++;
    }
    for (int kvHead = 0; kvHead < plan_.kvHeadCount; kvHead++) {
      for (int head = 0; head < group; head += heads) {
        const int first = kvHead * group;
        tasks_.push_back({begin, end - begin, first + head, first + std::min(group, head + heads)});
      }
    }
    begin = end;
  }
}

void CpuBackend::attention(DeviceBuffer& out, const DeviceBuffer& queries, int layer, int row, int rows) {
  planAttention(row, rows);
  pool_.forEach(static_cast<int64_t>(tasks_.size()), [&](int64_t i, int thread) {
    attend(tasks_[i], floats(out), floats(queries), layer, row, thread);
  });
}

void CpuBackend::attend(const AttentionTask& task, float* out, const float* queries, int layer, int firstRow,
                        int thread) {
  const int headDim = plan_.headDim;
  const int64_t columns = static_cast<int64_t>(plan_.headCount) * headDim;
  AttentionQuery list[kMaxQueries];
  int count = 0;
  for (int row = task.row; row < task.row + task.rowCount; row++) {
    for (int head = task.headBegin; head < task.headEnd; head++) {
      list[count++] = {queries + row * columns + head * headDim,
                       out + (row - firstRow) * columns + head * headDim, step_.lastVisibleOfRow[row]};
    }
  }

  const int kvHead = task.headBegin / (plan_.headCount / plan_.kvHeadCount);
  AttentionArgs args = {};
  args.queries = list;
  args.queryCount = count;
  args.kv.keys = keysOf(layer) + kvHead * plan_.tileBytes();
  args.kv.values = valuesOf(layer) + kvHead * plan_.tileBytes();
  args.kv.blockTable = step_.sequences[step_.sequenceOfRow[task.row]].blockTable.data();
  args.kv.tilesPerBlock = plan_.tilesPerBlock;
  args.kv.tileStride = plan_.kvHeadCount * plan_.tileBytes();
  args.headDim = headDim;
  args.scale = scoreScale_;
  args.scratch = threadScratch(thread);
  kernels_.attention[static_cast<int>(plan_.type)](args);
}

}  // namespace glm_relay
