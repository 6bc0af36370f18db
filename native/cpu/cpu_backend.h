// The CPU backend: operations run at once, spread over the stage's thread pool. How work is cut into
// tasks may depend on the number of threads, because no result does.
#pragma once

#include <memory>
#include <vector>

#include "backend.h"
#include "cpu/host_memory.h"
#include "model/router.h"
#include "model/thread_pool.h"

namespace glm_relay {

// `pool` outlives the backend and is used by the calling thread only.
std::unique_ptr<Backend> createCpuBackend(const KernelTable& kernels, ThreadPool& pool);

class HostBuffer : public DeviceBuffer {
 public:
  explicit HostBuffer(uint64_t size) : memory(size, HostMemory::kReady) { bytes = size; }
  HostMemory memory;
};

class CpuBackend : public Backend {
 public:
  CpuBackend(const KernelTable& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool) {}

  const char* kernels() const override { return kernels_.name; }
  std::unique_ptr<DeviceBuffer> allocate(uint64_t bytes) override;
  std::unique_ptr<DeviceMatrix> loadMatrix(const HostMatrix& matrix) override;
  std::unique_ptr<DeviceMatrix> mapMatrix(const PackedBytes& matrix) override;
  void reserveWeights(const WeightSizes&) override {}
  int rowTile() const override;
  void reserveRows(int rows, int stepRows, int columns) override;
  void prepareExperts(ExpertLayer&) override {}
  void reserveExperts(const ExpertShape& shape, int hiddenSize, int rows) override;
  void allocateKvCache(const KvPlan& plan) override;
  uint64_t kvBytes() const override { return 2 * plan_.layerBytes() * plan_.layerCount; }
  void copyBlock(int from, int to) override;
  uint64_t scratchBytes() const override {
    return attentionScratchBytes() + activationBytes_ + expertScratchBytes_;
  }

  bool inHostMemory() const override { return true; }
  void copyIn(DeviceBuffer& to, const void* from, uint64_t bytes) override;
  void copyOut(void* to, const DeviceBuffer& from, uint64_t bytes) override;
  void copyRowsIn(DeviceBuffer& to, const void* from, DType dtype, int rows, int columns) override;
  void copyRowsOut(void* to, const DeviceBuffer& from, DType dtype, int rows, int columns) override;

  void beginStep(const StepRows& rows) override { step_ = rows; }
  bool beginLayers() override { return true; }
  void endLayers() override {}
  void rmsNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows, const DeviceBuffer& weight,
               int size, float eps) override;
  void layerNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows, const DeviceBuffer& weight,
                 const DeviceBuffer& bias, int size, float eps) override;
  void matmul(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows, const DeviceMatrix& w,
              const DeviceBuffer* bias) override;
  void storeKeysValues(DeviceBuffer& queries, const DeviceBuffer& qkv, int layer, int row, int rows,
                       const HeadNorms& norms) override;
  void storePrefix(const DeviceBuffer& keysValues, int layer) override;
  void attention(DeviceBuffer& out, const DeviceBuffer& queries, int layer, int row, int rows) override;
  void gatedSilu(DeviceBuffer& y, const DeviceBuffer& gateUp, int rows, int size) override;
  void gelu(DeviceBuffer& y, const DeviceBuffer& x, int rows, int size) override;
  void gatedGelu(DeviceBuffer& y, const DeviceBuffer& upGate, int rows, int size) override;
  void mixExperts(DeviceBuffer& y, const DeviceBuffer& x, int rows, const ExpertLayer& layer) override;
  void scaleAdd(DeviceBuffer& x, int xRow, const DeviceBuffer& base, float scale, const DeviceBuffer& delta,
                int rows, int size, DType dtype) override;
  void add(DeviceBuffer& x, int xRow, const DeviceBuffer& delta, int rows, int size, DType dtype) override;
  void gatherRows(DeviceBuffer& y, const DeviceBuffer& x, const int32_t* rows, int count, int size) override;
  void whenIdle(std::function<void()> done) override { done(); }

 private:
  // A row to the nearest numbers of the type.
  void round(float* row, int size, DType dtype) const;
  // Consecutive rows of one sequence and some query heads of one KV head: one call of the kernel.
  struct AttentionTask {
    int row;
    int rowCount;
    int headBegin;
    int headEnd;
  };
  // What mixExperts works with, allocated by reserveExperts.
  struct ExpertScratch {
    std::unique_ptr<HostMemory> logits;    // [rows, experts]
    std::unique_ptr<HostMemory> scores;    // [threads, 2 * experts]
    std::unique_ptr<HostMemory> gathered;  // [rows, hidden]: the rows of one expert
    std::unique_ptr<HostMemory> up;        // [rows, 2 * ffn]
    std::unique_ptr<HostMemory> gated;     // [rows, ffn]
    std::unique_ptr<HostMemory> out;       // [rows * perToken, hidden], grouped by expert
    std::vector<ChosenExpert> chosen;      // [rows, perToken]
    std::vector<int32_t> slots;            // [rows, perToken]: where in `out`
    std::vector<int32_t> rows;             // of the expert at hand
  };
  void multiply(float* y, const float* x, int rows, const DeviceMatrix& w, const float* bias);
  void runExpert(int expert, const ExpertWeights& weights, const float* x, int rows, int& slot);
  const ActivationTile* quantizeRows(const float* x, int rows, int k);
  uint64_t attentionScratchBytes() const;
  void planAttention(int row, int rows);
  void attend(const AttentionTask& task, float* out, const float* queries, int layer, int firstRow,
              int thread);
  void storeRow(float* queries, const float* qkv, int layer, int row, int thread, const HeadNorms& norms);
  void rotate(float* head, const float* rotation) const;
  // Tiles of one KV head that hold a slot of a sequence, and the slot's place in them.
  struct SlotTiles {
    uint8_t* keys;
    uint8_t* values;
    int place;
  };
  SlotTiles tilesOf(const SequenceRows& sequence, int slot, int layer, int head) const;
  void storeSlot(uint8_t* keyTile, uint8_t* valueTile, int slot, const float* key, const float* value,
                 uint8_t* rounded) const;
  float* threadScratch(int thread) const;
  uint8_t* keysOf(int layer) const { return keys_->data() + layer * plan_.layerBytes(); }
  uint8_t* valuesOf(int layer) const { return values_->data() + layer * plan_.layerBytes(); }

  const KernelTable& kernels_;
  ThreadPool& pool_;
  StepRows step_ = {};

  // Of the widest rounded matrix, and room for the rounded rows of its input.
  int quantizedColumns_ = 0;
  uint64_t activationBytes_ = 0;
  std::unique_ptr<HostMemory> activations_;

  ExpertShape expertShape_ = {};
  int hiddenSize_ = 0;
  uint64_t expertScratchBytes_ = 0;
  ExpertScratch experts_;

  KvPlan plan_ = {};
  float scoreScale_ = 0.0f;
  std::unique_ptr<HostMemory> keys_;
  std::unique_ptr<HostMemory> values_;
  std::unique_ptr<HostMemory> scratch_;  // attention's, a part per thread
  std::vector<AttentionTask> tasks_;     // of the attention call at hand
};

}  // namespace glm_relay
