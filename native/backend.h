// What the model code asks of the hardware it runs on. The CPU is the first backend (cpu/); a CUDA
// backend is a shared library of its own, opened at run time, that exports createBackend.
//
// A backend belongs to one stage. It is asynchronous and blind to memory for its callers:
// - Operations are enqueued by the stage's driver thread, run in that order, and may run later;
//   whenIdle() tells when all of them are done. A backend that computes at once calls back at once.
// - Memory is opaque. Only copyIn, copyRowsOut and the like cross the border, and no pointer of the
//   caller is read after an operation has returned, save those that StepRows names.
// - Everything is allocated while the stage is created, from its plan; an operation allocates nothing.
//
// Activations are float32 rows. Rows are computed independently of each other (CANON.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/plan.h"

namespace glm_relay {

// The backend's memory does not hold what was asked for. Says how much is missing; allocating() adds what it
// was for.
class DeviceMemoryError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs `body`, which allocates memory for `what`. Throws std::runtime_error naming it where there is no room.
template <class Body>
auto allocating(const std::string& what, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const DeviceMemoryError& error) {
    throw std::runtime_error("no room for " + what + ": " + error.what());
  }
}

// The hardware is gone for this process: whatever a backend is asked for from now on fails like what has
// thrown this, and only another process can use the device again.
class DeviceLost : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Memory of a backend. Its size is known, its content only to the backend.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  uint64_t bytes = 0;
};

// How far rounded weights are from the stored ones: sums over all weights.
struct RoundingError {
  double squaredError = 0.0;
  double squaredWeight = 0.0;

  void add(const RoundingError& other) {
    squaredError += other.squaredError;
    squaredWeight += other.squaredWeight;
  }
};

// A weight matrix [n, k], as stored or rounded, laid out as the backend likes.
class DeviceMatrix {
 public:
  virtual ~DeviceMatrix() = default;
  uint64_t bytes = 0;
  int n = 0;
  int k = 0;
  RoundingError rounding;  // zero for a matrix as stored
  // Its `bytes` bytes as the backend lays them out, from which mapMatrix makes it again; null: they are not
  // in host memory.
  std::shared_ptr<const uint8_t> packed;
};

// A matrix that a backend has laid out before, such as from a file (cache/).
struct PackedBytes {
  int n;
  int k;
  DType dtype;  // of the stored weights
  WeightFormat format;
  RoundingError rounding;
  uint64_t bytes;
  std::shared_ptr<const uint8_t> data;  // on a multiple of 64
};

// A piece of a matrix, row-major in host memory, possibly unaligned.
struct HostPiece {
  const uint8_t* data;
  int rows;
  int columns;
};

// A matrix [n, k] in host memory, in one piece or in several; readable only during the call.
struct HostMatrix {
  // One below the other, with n rows or more in all; or side by side, each with n rows or more.
  std::vector<HostPiece> pieces;
  bool sideBySide;
  DType dtype;
  int n;
  int k;
  WeightFormat format;  // what the backend makes of it
  // Called now and then with how many rows have been read and are not needed any more.
  std::function<void(int rows)> consumed;

  size_t rowBytes() const { return static_cast<size_t>(k) * dtypeBytes(dtype); }
  // One row; where it lies in several pieces, it is put together in `scratch`, which has rowBytes().
  const uint8_t* row(int index, uint8_t* scratch) const;
};

// What is about to be loaded.
struct WeightSizes {
  struct Matrix {
    int n;
    int k;
    WeightFormat format;
  };
  std::vector<Matrix> matrices;
  std::vector<uint64_t> buffers;  // bytes of each
};

// The rows of a step: which sequence each belongs to and where. Valid until the step's whenIdle.
struct StepRows {
  const SequenceRows* sequences;
  int sequenceCount;
  int rowCount;
  const int32_t* sequenceOfRow;  // [rowCount]
  const int32_t* slotOfRow;      // [rowCount]: in the sequence's KV cache
  // [rowCount]: the row sees the slots [0, lastVisible]. In a context that is read as a whole this is the
  // context's last, which is later than the row's own.
  const int32_t* lastVisibleOfRow;
  const float* rotations;  // [rowCount, ropeDim]: cos and sin by pair
};

// RMSNorm of every query and key head before it is rotated; null: none.
struct HeadNorms {
  const DeviceBuffer* query = nullptr;
  const DeviceBuffer* key = nullptr;
  float eps = 0.0f;
};

// A feed-forward part chosen per row.
struct ExpertWeights {
  std::unique_ptr<DeviceMatrix> up;  // gate | up
  std::unique_ptr<DeviceMatrix> down;
};
struct ExpertLayer {
  std::unique_ptr<DeviceMatrix> router;  // [experts, hidden]
  std::unique_ptr<DeviceBuffer> bias;    // of the choice alone
  std::vector<ExpertWeights> experts;
  std::unique_ptr<DeviceBuffer> prepared;  // what the backend has made of them, if anything
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* kernels() const = 0;
  // Its buffers and matrices are in the memory that the process has; otherwise in a device's.
  virtual bool inHostMemory() const = 0;

  // Zeroed memory; pages that are never touched cost nothing. Throws DeviceMemoryError, as all that allocate
  // do.
  virtual std::unique_ptr<DeviceBuffer> allocate(uint64_t bytes) = 0;
  // Makes room for the matrices and buffers that are loaded next, where memory of their own for each would
  // cost more than they have.
  virtual void reserveWeights(const WeightSizes& sizes) = 0;
  // Throws WeightError for weights that cannot be used (quant/finite.h).
  virtual std::unique_ptr<DeviceMatrix> loadMatrix(const HostMatrix& matrix) = 0;
  // The matrix that loadMatrix made, without a copy where the backend computes in host memory. Null when the
  // bytes are not as many as the layout has.
  virtual std::unique_ptr<DeviceMatrix> mapMatrix(const PackedBytes& matrix) = 0;
  // Rows that had best pass through a layer together: the weights of a layer are read once for them.
  virtual int rowTile() const = 0;
  // Once, after the matrices and the cache and before any step: no operation within a layer has more than
  // `rows` rows, at most rowTile(), and no step more than `stepRows`, of `columns` columns.
  virtual void reserveRows(int rows, int stepRows, int columns) = 0;
  // Once for each layer with experts, when its weights are there.
  virtual void prepareExperts(ExpertLayer& layer) = 0;
  // Once, before any step, for a model with experts: what routing `rows` rows needs.
  virtual void reserveExperts(const ExpertShape& shape, int hiddenSize, int rows) = 0;
  // The paged cache of all layers of the stage, plus what attention needs; once, before any step.
  virtual void allocateKvCache(const KvPlan& plan) = 0;
  virtual uint64_t kvBytes() const = 0;
  // Block `to` becomes what block `from` is, in every layer.
  virtual void copyBlock(int from, int to) = 0;
  // Memory of the backend itself beyond buffers, matrices and cache; that of the device, where it has one.
  virtual uint64_t scratchBytes() const = 0;

  virtual void copyIn(DeviceBuffer& to, const void* from, uint64_t bytes) = 0;
  virtual void copyOut(void* to, const DeviceBuffer& from, uint64_t bytes) = 0;
  // Rows of `columns` values of the type, widened to float32 on the way in and rounded on the way out.
  virtual void copyRowsIn(DeviceBuffer& to, const void* from, DType dtype, int rows, int columns) = 0;
  virtual void copyRowsOut(void* to, const DeviceBuffer& from, DType dtype, int rows, int columns) = 0;

  virtual void beginStep(const StepRows& rows) = 0;
  // Around the operations of all layers of a stage, which a step of as many rows has always the same: false
  // says that the backend runs those that it has kept of an earlier step, and the caller enqueues none.
  virtual bool beginLayers() = 0;
  virtual void endLayers() = 0;
  // y[0, rows) = norm of x[xRow, xRow + rows)
  virtual void rmsNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows, const DeviceBuffer& weight,
                       int size, float eps) = 0;
  // The same with mean and bias.
  virtual void layerNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows,
                         const DeviceBuffer& weight, const DeviceBuffer& bias, int size, float eps) = 0;
  // y[0, rows) = x[xRow, xRow + rows) * w^T (+ bias)
  virtual void matmul(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows, const DeviceMatrix& w,
                      const DeviceBuffer* bias) = 0;
  // Takes q | k | v of the step's rows [row, row + rows): rotates q into `queries` at those rows,
  // rotates k, stores k and v in the cache of the layer (counted from the stage's first).
  virtual void storeKeysValues(DeviceBuffer& queries, const DeviceBuffer& qkv, int layer, int row, int rows,
                               const HeadNorms& norms) = 0;
  // Stores a prefix encoder's keys and values, [prefixLength, 2 * kvColumns] as key | value, in front of
  // every sequence that begins in this step.
  virtual void storePrefix(const DeviceBuffer& keysValues, int layer) = 0;
  // out[0, rows) = attention of the step's rows [row, row + rows)
  virtual void attention(DeviceBuffer& out, const DeviceBuffer& queries, int layer, int row, int rows) = 0;
  // y[r, i] = silu(gateUp[r, i]) * gateUp[r, size + i]
  virtual void gatedSilu(DeviceBuffer& y, const DeviceBuffer& gateUp, int rows, int size) = 0;
  // y[r, i] = gelu(x[r, i]), by tanh
  virtual void gelu(DeviceBuffer& y, const DeviceBuffer& x, int rows, int size) = 0;
  // y[r, i] = upGate[r, i] * gelu(upGate[r, size + i]), by erf
  virtual void gatedGelu(DeviceBuffer& y, const DeviceBuffer& upGate, int rows, int size) = 0;
  // y[r] = sum over the experts chosen for x[r], in their order, of weight * expert(x[r]) (CANON.md, Experts)
  virtual void mixExperts(DeviceBuffer& y, const DeviceBuffer& x, int rows, const ExpertLayer& layer) = 0;
  // x[xRow + r] = base[r] * scale + delta[r], rounded to the type, still held as float32.
  virtual void scaleAdd(DeviceBuffer& x, int xRow, const DeviceBuffer& base, float scale,
                        const DeviceBuffer& delta, int rows, int size, DType dtype) = 0;
  // x[xRow + r] += delta[r], rounded likewise.
  virtual void add(DeviceBuffer& x, int xRow, const DeviceBuffer& delta, int rows, int size, DType dtype) = 0;
  // y[i] = x[rows[i]]; `rows` is host memory and is read during the call.
  virtual void gatherRows(DeviceBuffer& y, const DeviceBuffer& x, const int32_t* rows, int count,
                          int size) = 0;

  // Calls `done` once, from any thread, when everything enqueued so far has run.
  virtual void whenIdle(std::function<void()> done) = 0;
};

}  // namespace glm_relay
