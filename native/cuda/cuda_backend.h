// The CUDA backend: operations become kernels in one stream of one GPU. The host only enqueues; it waits
// where whenIdle() is called and where rows are copied out.
//
// Rows are float32 as everywhere. Products take them, and the weights, as FP16, whatever the model's type
// (kernels/product.h); sums are float32.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda/cuda_experts.h"
#include "cuda/device_memory.h"
#include "cuda/host_transfers.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/rows.h"
#include "cuda/layer_graphs.h"
#include "cuda/pack_matrix.h"
#include "cuda/step_memory.h"
#include "model/thread_pool.h"

namespace glm_relay::cuda {

class CudaBuffer : public DeviceBuffer {
 public:
  CudaBuffer(uint64_t size, cudaStream_t stream, DeviceArena* arena = nullptr) : memory(size, stream, arena) {
    bytes = size;
  }
  float* floats() const { return memory.as<float>(); }
  DeviceMemory memory;
};

class CudaMatrix : public DeviceMatrix {
 public:
  CudaMatrix(const PackedWeights& weights, int rows, int columns, const WeightFormat& format,
             cudaStream_t stream, DeviceArena* arena);
  // A product with it: all but y, x and bias.
  ProductArgs args() const;

  const WeightLayout layout;
  const WeightType type;
  DeviceMemory blocks;
  DeviceMemory rowScales;
};

// A stream with its device, which it makes the calling thread's.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaBackend : public Backend {
 public:
  // To be used by the thread that makes it. `name` says which instructions of which GPUs compute: results may
  // differ between names. The other arguments outlive the backend; `progress` goes up while the GPU works.
  CudaBackend(int device, Path path, std::string name, const KernelTable& kernels, ThreadPool& pool,
              std::atomic<uint64_t>& progress);
  ~CudaBackend() override;

  const char* kernels() const override { return name_.c_str(); }
  bool inHostMemory() const override { return false; }
  int rowTile() const override;
  std::unique_ptr<DeviceBuffer> allocate(uint64_t bytes) override;
  void reserveWeights(const WeightSizes& sizes) override;
  std::unique_ptr<DeviceMatrix> loadMatrix(const HostMatrix& matrix) override;
  std::unique_ptr<DeviceMatrix> mapMatrix(const PackedBytes& matrix) override;
  void reserveRows(int rows, int stepRows, int columns) override;
  void prepareExperts(ExpertLayer& layer) override;
  void reserveExperts(const ExpertShape& shape, int hiddenSize, int rows) override;
  void allocateKvCache(const KvPlan& plan) override;
  uint64_t kvBytes() const override { return 2 * plan_.layerBytes() * plan_.layerCount; }
  void copyBlock(int from, int to) override;
  uint64_t scratchBytes() const override;

  void copyIn(DeviceBuffer& to, const void* from, uint64_t bytes) override;
  void copyOut(void* to, const DeviceBuffer& from, uint64_t bytes) override;
  void copyRowsIn(DeviceBuffer& to, const void* from, DType dtype, int rows, int columns) override;
  void copyRowsOut(void* to, const DeviceBuffer& from, DType dtype, int rows, int columns) override;

  void beginStep(const StepRows& rows) override;
  bool beginLayers() override;
  void endLayers() override;
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
  void whenIdle(std::function<void()> done) override;

 private:
  // A place in the stream that the host can wait for.
  struct Mark {
    cudaEvent_t event = nullptr;
    bool waiting = false;
  };
  // Which rows halves_ and halfScales_ are.
  struct Halved {
    const float* from = nullptr;
    int rows = 0;
    int columns = 0;
  };
  // Where work is enqueued, behind a sum that was put off.
  cudaStream_t stream();
  // Puts a sum off: it is computed in the kernel of the norm behind it, if one follows.
  void putOff(DeviceBuffer& x, int xRow, const float* base, float scale, const DeviceBuffer& delta, int rows,
              int size, DType dtype);
  // The sum that was put off, if it makes rows x; it is the caller's then.
  std::optional<RowSum> takeSum(const float* x, int rows, int size);
  // Room in halves_ for what an operation gives as FP16 too: y[0, rows), which is all that halved_ is then.
  HalfRows halved(const float* y, int rows, int columns);
  // x[0, rows) as FP16, which may be there already.
  HalfRows halvesFor(const float* x, int rows, int columns);
  void activate(DeviceBuffer& y, Activation activation, const DeviceBuffer& x, int rows, int size);
  // y[0, rows) = x[0, rows) * w^T (+ bias)
  void multiply(float* y, const float* x, int rows, const CudaMatrix& w, const float* bias);
  // y of the rows of all experts by their up (0) or down (1) matrices.
  void multiplyExperts(float* y, const HalfRows& x, const ExpertLayer& layer, int which, ProductKernel kernel,
                       int tileCount);
  CacheView cacheView(int layer) const;
  void setMark();
  void wait(Mark& mark);

  const KernelTable& hostKernels_;
  ThreadPool& pool_;
  std::atomic<uint64_t>& progress_;
  const Path path_;
  const std::string name_;
  const Stream stream_;

  DeviceArena arena_;        // of weights
  int widestColumns_ = 0;    // of a weight matrix
  DeviceMemory halves_;      // the input of a product
  DeviceMemory halfScales_;  // a float per row
  Halved halved_;
  struct PutOff {
    RowSum sum;
    int rows;
    int size;
  };
  std::optional<PutOff> putOff_;
  DeviceMemory rowBytes_;    // rows that come in or go out, in the residual stream's type
  DeviceMemory maxima_;      // of rows that several blocks of threads share
  DeviceMemory rowIndices_;  // of gatherRows

  KvPlan plan_ = {};
  DeviceMemory keys_;
  DeviceMemory values_;
  DeviceMemory partials_;
  StepMemory step_;
  HostTransfers transfers_;
  LayerGraphs graphs_;
  ExpertMemory experts_;

  // Attention calls of the step, oldest at nextMark_ when all are waiting.
  std::vector<Mark> marks_;
  size_t nextMark_ = 0;
};

}  // namespace glm_relay::cuda
