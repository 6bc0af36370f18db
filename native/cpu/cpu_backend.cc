#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/packed_matrix.h"
#include "cpu/quantized_matrix.h"

namespace glm_relay {

namespace {

// A task of a matrix product is at most so many multiply-adds: the progress counter must move well
// within a lease of 2 s even with the scalar kernels (1e8 per second and fewer).
constexpr int64_t kTaskMultiplyAdds = 1 << 24;
// The workspace of the feed-forward part does not grow with the prompt.
constexpr int kRowTile = 96;
// Elementwise rows per task.
constexpr int kTaskRows = 8;

float* floats(DeviceBuffer& buffer) { return static_cast<HostBuffer&>(buffer).memory.floats(); }
const float* floats(const DeviceBuffer& buffer) {
  return static_cast<const HostBuffer&>(buffer).memory.floats();
}

// Calls body(row) for every row, several to a task.
template <class Body>
void forEachRow(ThreadPool& pool, int rows, Body body) {
  pool.forEach((rows + kTaskRows - 1) / kTaskRows, [&](int64_t task, int) {
    const int begin = static_cast<int>(task) * kTaskRows;
    const int end = std::min(rows, begin + kTaskRows);
    for (int row = begin; row < end; row++) body(static_cast<int64_t>(row));
  });
}

// Cuts a matrix product into tasks of whole strips and calls run(stripBegin, stripEnd) for each.
template <class Run>
void forEachStrips(ThreadPool& pool, int strips, int k, int rows, Run run) {
  const int64_t stripMultiplyAdds = static_cast<int64_t>(kStripRows) * k * rows;
  const int64_t forProgress = std::max<int64_t>(1, kTaskMultiplyAdds / stripMultiplyAdds);
  // Four tasks per thread even out threads that the system holds back.
  const int64_t forBalance = std::max<int64_t>(1, strips / (4 * pool.threads()));
  const int stripsPerTask = static_cast<int>(std::min(forProgress, forBalance));
  pool.forEach((strips + stripsPerTask - 1) / stripsPerTask, [&](int64_t task, int) {
    const int begin = static_cast<int>(task) * stripsPerTask;
    run(begin, std::min(strips, begin + stripsPerTask));
  });
}

}  // namespace

std::unique_ptr<Backend> createCpuBackend(const KernelTable& kernels, ThreadPool& pool) {
  return std::make_unique<CpuBackend>(kernels, pool);
}

std::unique_ptr<DeviceBuffer> CpuBackend::allocate(uint64_t bytes) {
  return std::make_unique<HostBuffer>(bytes);
}

std::unique_ptr<DeviceMatrix> CpuBackend::loadMatrix(const HostMatrix& matrix) {
  if (matrix.format.type == WeightType::kStored) return std::make_unique<PackedMatrix>(matrix, pool_);
  quantizedColumns_ = std::max(quantizedColumns_, matrix.k);
  return std::make_unique<QuantizedMatrix>(matrix, kernels_, pool_);
}

std::unique_ptr<DeviceMatrix> CpuBackend::mapMatrix(const PackedBytes& matrix) {
  if (matrix.format.type == WeightType::kStored) {
    if (matrix.bytes != PackedMatrix::packedBytes(matrix.n, matrix.k, matrix.dtype)) return nullptr;
    return std::make_unique<PackedMatrix>(matrix);
  }
  if (matrix.bytes != QuantLayout(matrix.n, matrix.k, matrix.format).bytes()) return nullptr;
  quantizedColumns_ = std::max(quantizedColumns_, matrix.k);
  return std::make_unique<QuantizedMatrix>(matrix);
}

int CpuBackend::rowTile() const { return kRowTile; }

void CpuBackend::reserveRows(int rows, int, int) {
  if (quantizedColumns_ == 0) return;
  activationBytes_ = activationTiles(rows, quantizedColumns_) * sizeof(ActivationTile);
  activations_ = std::make_unique<HostMemory>(activationBytes_, HostMemory::kReady);
}

void CpuBackend::copyIn(DeviceBuffer& to, const void* from, uint64_t bytes) {
  std::memcpy(floats(to), from, bytes);
}

void CpuBackend::copyOut(void* to, const DeviceBuffer& from, uint64_t bytes) {
  std::memcpy(to, floats(from), bytes);
}

void CpuBackend::copyRowsIn(DeviceBuffer& to, const void* from, DType dtype, int rows, int columns) {
  const int64_t count = static_cast<int64_t>(rows) * columns;
  kernels_.widen[static_cast<int>(dtype)](floats(to), from, count);
}

void CpuBackend::copyRowsOut(void* to, const DeviceBuffer& from, DType dtype, int rows, int columns) {
  const int64_t count = static_cast<int64_t>(rows) * columns;
  kernels_.narrow[static_cast<int>(dtype)](to, floats(from), count);
}

void CpuBackend::rmsNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows,
                         const DeviceBuffer& weight, int size, float eps) {
  float* out = floats(y);
  const float* in = floats(x) + static_cast<int64_t>(xRow) * size;
  const float* w = floats(weight);
  forEachRow(pool_, rows,
             [&](int64_t row) { kernels_.rmsNorm(out + row * size, in + row * size, w, size, eps); });
}

const ActivationTile* CpuBackend::quantizeRows(const float* x, int rows, int k) {
  auto* tiles = reinterpret_cast<ActivationTile*>(activations_->data());
  const int64_t tilesPerRow = static_cast<int64_t>(activationTiles(1, k));
  pool_.forEach((rows + kTileRows - 1) / kTileRows, [&](int64_t i, int) {
    const int row = static_cast<int>(i) * kTileRows;
    kernels_.quantizeRows(tiles + i * tilesPerRow, x + static_cast<int64_t>(row) * k,
                          std::min(kTileRows, rows - row), k);
  });
  return tiles;
}

void CpuBackend::layerNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows,
                           const DeviceBuffer& weight, const DeviceBuffer& bias, int size, float eps) {
  float* out = floats(y);
  const float* in = floats(x) + static_cast<int64_t>(xRow) * size;
  const float* w = floats(weight);
  const float* b = floats(bias);
  forEachRow(pool_, rows,
             [&](int64_t row) { kernels_.layerNorm(out + row * size, in + row * size, w, b, size, eps); });
}

void CpuBackend::matmul(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows, const DeviceMatrix& w,
                        const DeviceBuffer* bias) {
  multiply(floats(y), floats(x) + static_cast<int64_t>(xRow) * w.k, rows, w, bias ? floats(*bias) : nullptr);
}

// y[0, rows) = x[0, rows) * w^T (+ bias)
void CpuBackend::multiply(float* y, const float* x, int rows, const DeviceMatrix& w, const float* bias) {
  if (const auto* quantized = dynamic_cast<const QuantizedMatrix*>(&w)) {
    QuantMatmulArgs args = {};
    args.y = y;
    args.x = quantizeRows(x, rows, w.k);
    args.strips = quantized->data();
    args.bias = bias;
    args.rows = rows;
    args.n = w.n;
    args.k = w.k;
    args.tilesPerGroup = quantized->layout().tilesPerGroup;
    const auto kernel = quantized->type() == WeightType::kInt4 ? kernels_.matmulInt4 : kernels_.matmulInt8;
    forEachStrips(pool_, quantized->layout().strips, w.k, rows, [&](int begin, int end) {
      QuantMatmulArgs part = args;
      part.stripBegin = begin;
      part.stripEnd = end;
      kernel(part);
    });
    return;
  }
  const auto& packed = static_cast<const PackedMatrix&>(w);
  MatmulArgs args = {};
  args.y = y;
  args.x = x;
  args.packed = packed.data();
  args.bias = bias;
  args.rows = rows;
  args.n = w.n;
  args.k = w.k;
  const auto kernel = kernels_.matmul[static_cast<int>(packed.dtype())];
  forEachStrips(pool_, packed.strips(), w.k, rows, [&](int begin, int end) {
    MatmulArgs part = args;
    part.stripBegin = begin;
    part.stripEnd = end;
    kernel(part);
  });
}

void CpuBackend::gatedSilu(DeviceBuffer& y, const DeviceBuffer& gateUp, int rows, int size) {
  float* out = floats(y);
  const float* in = floats(gateUp);
  forEachRow(pool_, rows,
             [&](int64_t row) { kernels_.gatedSilu(out + row * size, in + 2 * row * size, size); });
}

void CpuBackend::gelu(DeviceBuffer& y, const DeviceBuffer& x, int rows, int size) {
  float* out = floats(y);
  const float* in = floats(x);
  forEachRow(pool_, rows, [&](int64_t row) { kernels_.gelu(out + row * size, in + row * size, size); });
}

void CpuBackend::gatedGelu(DeviceBuffer& y, const DeviceBuffer& upGate, int rows, int size) {
  float* out = floats(y);
  const float* in = floats(upGate);
  forEachRow(pool_, rows,
             [&](int64_t row) { kernels_.gatedGelu(out + row * size, in + 2 * row * size, size); });
}

void CpuBackend::scaleAdd(DeviceBuffer& x, int xRow, const DeviceBuffer& base, float scale,
                          const DeviceBuffer& delta, int rows, int size, DType dtype) {
  float* out = floats(x) + static_cast<int64_t>(xRow) * size;
  const float* from = floats(base);
  const float* in = floats(delta);
  forEachRow(pool_, rows, [&](int64_t row) {
    kernels_.scaleAdd(out + row * size, from + row * size, scale, in + row * size, size);
    round(out + row * size, size, dtype);
  });
}

void CpuBackend::add(DeviceBuffer& x, int xRow, const DeviceBuffer& delta, int rows, int size, DType dtype) {
  float* out = floats(x) + static_cast<int64_t>(xRow) * size;
  const float* in = floats(delta);
  forEachRow(pool_, rows, [&](int64_t row) {
    kernels_.add(out + row * size, in + row * size, size);
    round(out + row * size, size, dtype);
  });
}

void CpuBackend::round(float* row, int size, DType dtype) const {
  if (dtype != DType::kFloat32) kernels_.round[static_cast<int>(dtype)](row, size);
}

void CpuBackend::gatherRows(DeviceBuffer& y, const DeviceBuffer& x, const int32_t* rows, int count,
                            int size) {
  for (int i = 0; i < count; i++) {
    std::memcpy(floats(y) + static_cast<int64_t>(i) * size, floats(x) + static_cast<int64_t>(rows[i]) * size,
                static_cast<size_t>(size) * sizeof(float));
  }
}

}  // namespace glm_relay
