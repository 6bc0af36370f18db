#include "cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "cpu/packed_matrix.h"
#include "cuda/kernels/product.h"
#include "quant/format.h"

namespace glm_relay::cuda {

namespace {

// Rows that pass through a layer together, so that the weights are read once for all of them; its workspace
// is 270 MB for GLM-130B.
constexpr int kRowTile = 512;
// Layers that the GPU may be behind the host.
constexpr int kMarks = 64;
// Room for the parts of contexts whose sums are made side by side, in floats: 64 rows of 8192 slots in a
// model with 32 heads of 128 dimensions.
constexpr int64_t kPartialFloats = 9 << 20;
// Warps that are enough to fill a GPU: with so many, parts are computed one after the other.
constexpr int kManyWarps = 1024;

int paddedColumnsOf(int columns) { return (columns + kBlockColumns - 1) / kBlockColumns * kBlockColumns; }

// Page-locked memory for the rows and logits of a step, each way: logits of 16 rows of the largest
// vocabulary, or rows of GLM-130B for a tile.
constexpr uint64_t kTransferBytes = 16 << 20;

// Parts of a context, up to a power of two: steps of a growing context are alike for as long as they can be.
int partsOf(int lastVisible) {
  int parts = 1;
  while (parts * kPartSlots <= lastVisible) parts *= 2;
  return parts;
}

float* floats(const DeviceBuffer& buffer) { return static_cast<const CudaBuffer&>(buffer).floats(); }
const float* floatsOrNull(const DeviceBuffer* buffer) {
  return buffer == nullptr ? nullptr : floats(*buffer);
}

}  // namespace

CudaMatrix::CudaMatrix(const PackedWeights& weights, int rows, int columns, const WeightFormat& format,
                       cudaStream_t stream, DeviceArena* arena)
    : layout(rows, columns, format),
      type(format.type),
      blocks(weights.blocks.size(), stream, arena),
      rowScales(weights.rowScales.size() * sizeof(float), stream, arena) {
  n = rows;
  k = columns;
  bytes = blocks.bytes() + rowScales.bytes();
  rounding = weights.rounding;
  const auto upload = [&](const DeviceMemory& to, const void* from) {
    check(cudaMemcpyAsync(to.as<void>(), from, to.bytes(), cudaMemcpyHostToDevice, stream),
          "loading weights");
  };
  upload(blocks, weights.blocks.data());
  upload(rowScales, weights.rowScales.data());
}

ProductArgs CudaMatrix::args() const {
  ProductArgs args = {};
  args.weights = blocks.as<uint8_t>();
  args.rowScales = rowScales.as<float>();
  args.n = n;
  args.rowBlocks = layout.rowBlocks;
  args.columnBlocks = layout.columnBlocks;
  args.groupsPerBlock = layout.groupsPerBlock;
  args.blockBytes = layout.blockBytes;
  return args;
}

Stream::Stream(int device) {
  check(cudaSetDevice(device), "being chosen");
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
}

Stream::~Stream() { cudaStreamDestroy(stream_); }

CudaBackend::CudaBackend(int device, Path path, std::string name, const KernelTable& kernels,
                         ThreadPool& pool, std::atomic<uint64_t>& progress)
    : hostKernels_(kernels),
      pool_(pool),
      progress_(progress),
      path_(path),
      name_(std::move(name)),
      stream_(device),
      marks_(kMarks) {
  prepareLaunches();
  prepareProducts(path);
  prepareAttention(path);
  check(cudaGetLastError(), "being prepared");
  for (Mark& mark : marks_) {
    check(cudaEventCreateWithFlags(&mark.event, cudaEventDisableTiming), "making events");
  }
}

CudaBackend::~CudaBackend() {
  for (Mark& mark : marks_) cudaEventDestroy(mark.event);
}

int CudaBackend::rowTile() const { return kRowTile; }

std::unique_ptr<DeviceBuffer> CudaBackend::allocate(uint64_t bytes) {
  auto buffer = std::make_unique<CudaBuffer>(bytes, stream(), &arena_);
  check(cudaMemsetAsync(buffer->memory.as<void>(), 0, bytes, stream()), "clearing memory");
  return buffer;
}

void CudaBackend::reserveWeights(const WeightSizes& sizes) {
  uint64_t bytes = 0;
  for (const WeightSizes::Matrix& matrix : sizes.matrices) {
    bytes += DeviceArena::taken(WeightLayout(matrix.n, matrix.k, matrix.format).bytes()) +
             DeviceArena::taken(matrix.n * sizeof(float));
  }
  for (const uint64_t buffer : sizes.buffers) bytes += DeviceArena::taken(buffer);
  arena_.reserve(bytes, stream());
}

std::unique_ptr<DeviceMatrix> CudaBackend::loadMatrix(const HostMatrix& matrix) {
  const PackedWeights weights = packMatrix(matrix, hostKernels_, pool_);
  auto loaded = std::make_unique<CudaMatrix>(weights, matrix.n, matrix.k, matrix.format, stream(), &arena_);
  widestColumns_ = std::max(widestColumns_, loaded->layout.paddedColumns());
  return loaded;
}

std::unique_ptr<DeviceMatrix> CudaBackend::mapMatrix(const PackedBytes& matrix) {
  const uint64_t expected = matrix.format.type == WeightType::kStored
                                ? PackedMatrix::packedBytes(matrix.n, matrix.k, matrix.dtype)
                                : QuantLayout(matrix.n, matrix.k, matrix.format).bytes();
  if (matrix.bytes != expected) return nullptr;
  const PackedWeights weights = packStrips(matrix, hostKernels_, pool_);
  auto loaded = std::make_unique<CudaMatrix>(weights, matrix.n, matrix.k, matrix.format, stream(), &arena_);
  widestColumns_ = std::max(widestColumns_, loaded->layout.paddedColumns());
  return loaded;
}

void CudaBackend::reserveRows(int rows, int stepRows, int columns) {
  const auto require = [](const char* what, int size, int most) {
    if (size <= most) return;
    throw CudaError(std::string(what) + " " + std::to_string(size) + ": expected at most " +
                    std::to_string(most) + " on GPUs");
  };
  require("hiddenSize", columns, kMaxNormColumns);
  require("columns of a weight matrix", widestColumns_, kMaxRowColumns);
  halves_.grow(halvesOf(rows, widestColumns_) * sizeof(uint16_t), stream());
  halfScales_.grow(rows * sizeof(float), stream());
  rowBytes_.grow(static_cast<uint64_t>(stepRows) * columns * sizeof(float), stream());
  rowIndices_.grow(stepRows * sizeof(int32_t), stream());
  maxima_.grow(static_cast<uint64_t>(rows) * kRowShares * sizeof(uint32_t), stream());
  transfers_.reserve(kTransferBytes);
  step_.reserve(plan_, stepRows, kRowTile, usesTensorCores(path_, plan_.type, plan_.headDim), stream());
}

void CudaBackend::allocateKvCache(const KvPlan& plan) {
  if (plan.headDim > kMaxHeadDim) {
    throw CudaError("headDim " + std::to_string(plan.headDim) + ": expected at most " +
                    std::to_string(kMaxHeadDim) + " on GPUs");
  }
  plan_ = plan;
  keys_.grow(plan.layerBytes() * plan.layerCount, stream());
  values_.grow(plan.layerBytes() * plan.layerCount, stream());
  // No context is longer than the cache, and no step has more rows of one than there is use for.
  const int parts = partsOf(plan.blockCount * plan.tilesPerBlock * kKeyTile - 1);
  const int64_t floats = partialFloats(kRowTile, plan.headCount, plan.headDim, parts);
  partials_.grow(std::min(floats, kPartialFloats) * sizeof(float), stream());
}

void CudaBackend::copyBlock(int from, int to) {
  const uint64_t bytes = plan_.blockBytes();
  for (int layer = 0; layer < plan_.layerCount; layer++) {
    for (const DeviceMemory* cache : {&keys_, &values_}) {
      uint8_t* blocks = cache->as<uint8_t>() + layer * plan_.layerBytes();
      check(cudaMemcpyAsync(blocks + to * bytes, blocks + from * bytes, bytes, cudaMemcpyDeviceToDevice,
                            stream()),
            "copying a block");
    }
  }
}

uint64_t CudaBackend::scratchBytes() const {
  return halves_.bytes() + halfScales_.bytes() + rowBytes_.bytes() + rowIndices_.bytes() + maxima_.bytes() +
         partials_.bytes() + experts_.bytes() + step_.bytes();
}

void CudaBackend::copyIn(DeviceBuffer& to, const void* from, uint64_t bytes) {
  halved_ = {};
  transfers_.in(floats(to), from, bytes, stream());
}

void CudaBackend::copyOut(void* to, const DeviceBuffer& from, uint64_t bytes) {
  transfers_.out(to, floats(from), bytes, stream());
}

void CudaBackend::copyRowsIn(DeviceBuffer& to, const void* from, DType dtype, int rows, int columns) {
  halved_ = {};
  const int64_t count = static_cast<int64_t>(rows) * columns;
  const uint64_t bytes = count * dtypeBytes(dtype);
  rowBytes_.grow(bytes, stream());
  transfers_.in(rowBytes_.as<void>(), from, bytes, stream());
  widen(stream(), floats(to), rowBytes_.as<void>(), count, dtype);
}

void CudaBackend::copyRowsOut(void* to, const DeviceBuffer& from, DType dtype, int rows, int columns) {
  const int64_t count = static_cast<int64_t>(rows) * columns;
  const uint64_t bytes = count * dtypeBytes(dtype);
  rowBytes_.grow(bytes, stream());
  narrow(stream(), rowBytes_.as<void>(), floats(from), count, dtype);
  transfers_.out(to, rowBytes_.as<void>(), bytes, stream());
}

void CudaBackend::beginStep(const StepRows& rows) {
  halved_ = {};
  // Of a step that failed.
  putOff_.reset();
  graphs_.abandon(stream());
  // The rows of the step before may still be on their way.
  check(cudaStreamSynchronize(stream()), "ending a step");
  step_.begin(rows);
}

HalfRows CudaBackend::halved(const float* y, int rows, int columns) {
  const int padded = paddedColumnsOf(columns);
  // Only before reserveRows, for a prefix encoder, is there anything to grow.
  halves_.grow(halvesOf(rows, padded) * sizeof(uint16_t), stream());
  halfScales_.grow(rows * sizeof(float), stream());
  halved_ = {y, rows, columns};
  return {halves_.as<uint16_t>(), halfScales_.as<float>(), padded};
}

HalfRows CudaBackend::halvesFor(const float* x, int rows, int columns) {
  if (halved_.from != x || halved_.rows < rows || halved_.columns != columns) {
    halveRows(stream(), halved(x, rows, columns), x, rows, columns);
  }
  return {halves_.as<uint16_t>(), halfScales_.as<float>(), paddedColumnsOf(columns)};
}

bool CudaBackend::beginLayers() {
  halved_ = {};
  const bool few = step_.rowCount() > 0 && step_.rowCount() <= kFewRows;
  if (!few || (plan_.prefixLength > 0 && step_.beginnerCount() > 0)) return true;
  const StepMemory::Tasks tasks = step_.tasksOf(0, step_.rowCount());
  return graphs_.begin({step_.rowCount(), tasks.count, tasks.wide, partsOf(tasks.lastVisible), step_.place()},
                       stream());
}

void CudaBackend::endLayers() {
  graphs_.end(stream());
  halved_ = {};
}

cudaStream_t CudaBackend::stream() {
  if (putOff_) {
    const PutOff waiting = *putOff_;
    putOff_.reset();
    sumRows(stream_.get(), waiting.sum, static_cast<int64_t>(waiting.rows) * waiting.size);
  }
  return stream_.get();
}

void CudaBackend::putOff(DeviceBuffer& x, int xRow, const float* base, float scale, const DeviceBuffer& delta,
                         int rows, int size, DType dtype) {
  stream();
  halved_ = {};
  float* to = floats(x) + static_cast<int64_t>(xRow) * size;
  putOff_ = PutOff{{to, base == nullptr ? to : base, scale, floats(delta), dtype}, rows, size};
}

std::optional<RowSum> CudaBackend::takeSum(const float* x, int rows, int size) {
  if (!putOff_ || putOff_->sum.x != x || putOff_->rows != rows || putOff_->size != size) return {};
  const RowSum sum = putOff_->sum;
  putOff_.reset();
  return sum;
}

void CudaBackend::rmsNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows,
                          const DeviceBuffer& weight, int size, float eps) {
  const float* from = floats(x) + static_cast<int64_t>(xRow) * size;
  const std::optional<RowSum> sum = takeSum(from, rows, size);
  rmsNormRows(stream(), halved(floats(y), rows, size), floats(y), from, sum ? &*sum : nullptr, floats(weight),
              rows, size, eps);
}

void CudaBackend::layerNorm(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows,
                            const DeviceBuffer& weight, const DeviceBuffer& bias, int size, float eps) {
  const float* from = floats(x) + static_cast<int64_t>(xRow) * size;
  const std::optional<RowSum> sum = takeSum(from, rows, size);
  layerNormRows(stream(), halved(floats(y), rows, size), floats(y), from, sum ? &*sum : nullptr,
                floats(weight), floats(bias), rows, size, eps);
}

void CudaBackend::matmul(DeviceBuffer& y, const DeviceBuffer& x, int xRow, int rows, const DeviceMatrix& w,
                         const DeviceBuffer* bias) {
  multiply(floats(y), floats(x) + static_cast<int64_t>(xRow) * w.k, rows, static_cast<const CudaMatrix&>(w),
           floatsOrNull(bias));
}

void CudaBackend::multiply(float* y, const float* x, int rows, const CudaMatrix& w, const float* bias) {
  const HalfRows from = halvesFor(x, rows, w.k);
  // What is written over x is no longer what was halved.
  if (halved_.from == y) halved_ = {};
  ProductArgs args = w.args();
  args.y = y;
  args.x = from.halves;
  args.xScales = from.scales;
  args.bias = bias;
  args.rows = rows;
  product(stream(), path_, w.type, args);
}

CacheView CudaBackend::cacheView(int layer) const {
  const uint64_t offset = layer * plan_.layerBytes();
  CacheView view = {};
  view.keys = keys_.as<uint8_t>() + offset;
  view.values = values_.as<uint8_t>() + offset;
  view.tables = step_.tables();
  view.tableBegins = step_.tableBegins();
  view.type = plan_.type;
  view.tilesPerBlock = plan_.tilesPerBlock;
  view.headCount = plan_.headCount;
  view.kvHeadCount = plan_.kvHeadCount;
  view.headDim = plan_.headDim;
  view.tileBytes = static_cast<int64_t>(plan_.tileBytes());
  return view;
}

void CudaBackend::storeKeysValues(DeviceBuffer& queries, const DeviceBuffer& qkv, int layer, int row,
                                  int rows, const HeadNorms& norms) {
  halved_ = {};
  StoreArgs args = {};
  args.cache = cacheView(layer);
  args.queries = floats(queries) + static_cast<int64_t>(row) * plan_.headCount * plan_.headDim;
  args.qkv = floats(qkv);
  args.rotations = step_.rotations() + static_cast<int64_t>(row) * plan_.ropeDim;
  args.sequenceOfRow = step_.sequenceOfRow() + row;
  args.slotOfRow = step_.slotOfRow() + row;
  args.queryNorm = floatsOrNull(norms.query);
  args.keyNorm = floatsOrNull(norms.key);
  args.eps = norms.eps;
  args.rows = rows;
  args.ropeDim = plan_.ropeDim;
  args.ropeAxes = plan_.ropeAxes;
  args.ropeHalves = plan_.ropeHalves;
  cuda::storeKeysValues(stream(), args);
}

void CudaBackend::storePrefix(const DeviceBuffer& keysValues, int layer) {
  if (step_.beginnerCount() == 0) return;
  cuda::storePrefix(stream(), cacheView(layer), floats(keysValues), plan_.prefixLength, step_.beginners(),
                    step_.beginnerCount());
}

void CudaBackend::attention(DeviceBuffer& out, const DeviceBuffer& queries, int layer, int row, int rows) {
  halved_ = {};
  const StepMemory::Tasks tasks = step_.tasksOf(row, rows);
  AttentionArgs args = {};
  args.cache = cacheView(layer);
  args.out = floats(out);
  args.queries = floats(queries);
  args.tasks = tasks.first;
  args.lastVisibleOfRow = step_.lastVisibleOfRow();
  args.taskCount = tasks.count;
  args.wideTasks = tasks.wide;
  args.firstRow = row;
  args.rows = rows;
  args.parts = partsOf(tasks.lastVisible);
  const uint64_t floats = partialFloats(rows, plan_.headCount, plan_.headDim, args.parts);
  const bool fits = floats * sizeof(float) <= partials_.bytes();
  const int warps = (tasks.count + (kWideWarps - 1) * tasks.wide) * plan_.kvHeadCount;
  if (args.parts > 1 && fits && warps < kManyWarps) args.partials = partials_.as<float>();
  cuda::attention(stream(), path_, args);
  if (!graphs_.isKeeping()) setMark();
}

void CudaBackend::activate(DeviceBuffer& y, Activation activation, const DeviceBuffer& x, int rows,
                           int size) {
  HalfRows to = halved(floats(y), rows, size);
  to.maxima = maxima_.as<uint32_t>();
  activateRows(stream(), to, floats(y), activation, floats(x), rows, size);
}

void CudaBackend::gatedSilu(DeviceBuffer& y, const DeviceBuffer& gateUp, int rows, int size) {
  activate(y, Activation::kGatedSilu, gateUp, rows, size);
}

void CudaBackend::gelu(DeviceBuffer& y, const DeviceBuffer& x, int rows, int size) {
  activate(y, Activation::kGelu, x, rows, size);
}

void CudaBackend::gatedGelu(DeviceBuffer& y, const DeviceBuffer& upGate, int rows, int size) {
  activate(y, Activation::kGatedGelu, upGate, rows, size);
}

void CudaBackend::scaleAdd(DeviceBuffer& x, int xRow, const DeviceBuffer& base, float scale,
                           const DeviceBuffer& delta, int rows, int size, DType dtype) {
  putOff(x, xRow, floats(base), scale, delta, rows, size, dtype);
}

void CudaBackend::add(DeviceBuffer& x, int xRow, const DeviceBuffer& delta, int rows, int size, DType dtype) {
  putOff(x, xRow, nullptr, 1.0f, delta, rows, size, dtype);
}

void CudaBackend::gatherRows(DeviceBuffer& y, const DeviceBuffer& x, const int32_t* rows, int count,
                             int size) {
  halved_ = {};
  check(cudaMemcpyAsync(rowIndices_.as<void>(), rows, count * sizeof(int32_t), cudaMemcpyHostToDevice,
                        stream()),
        "choosing rows");
  cuda::gatherRows(stream(), floats(y), floats(x), rowIndices_.as<int32_t>(), count, size);
}

// A layer has been enqueued: when the GPU gets here, it has made progress.
void CudaBackend::setMark() {
  Mark& mark = marks_[nextMark_];
  nextMark_ = (nextMark_ + 1) % marks_.size();
  wait(mark);
  check(cudaEventRecord(mark.event, stream()), "computing a layer");
  mark.waiting = true;
}

void CudaBackend::wait(Mark& mark) {
  if (!mark.waiting) return;
  mark.waiting = false;
  check(cudaEventSynchronize(mark.event), "computing a layer");
  progress_.fetch_add(1, std::memory_order_relaxed);
}

void CudaBackend::whenIdle(std::function<void()> done) {
  for (size_t i = 0; i < marks_.size(); i++) wait(marks_[(nextMark_ + i) % marks_.size()]);
  check(cudaStreamSynchronize(stream()), "computing a step");
  check(cudaGetLastError(), "starting a kernel");
  transfers_.finish();
  progress_.fetch_add(1, std::memory_order_relaxed);
  done();
}

}  // namespace glm_relay::cuda
