#include "model/layer_loop.h"

#include <algorithm>
#include <future>
#include <iterator>

namespace glm_relay {

namespace {

// Rows whose logits exist at the same time: at most 16 * 151552 * 4 bytes = 9.7 MB for the largest GLM.
constexpr int kLogitTile = 16;

// Nothing more is drawn for a request once a token is not the draft's at its place, or the draft is used up.
bool isSettled(const SampleRequest& request, const std::vector<TokenResult>& drawn) {
  if (drawn.empty()) return false;
  const size_t index = drawn.size() - 1;
  const TokenResult& last = drawn.back();
  return index == request.draft.size() || !last.finite || last.token != request.draft[index];
}

}  // namespace

LayerLoop::LayerLoop(const StageConfig& config, const KernelTable& kernels, Backend& backend,
                     ThreadPool& pool, WeightCache* cache, const std::function<void(uint64_t bytes)>& loaded)
    : config_(config),
      kernels_(kernels),
      backend_(backend),
      pool_(pool),
      rowTile_(backend.rowTile()),
      rope_(config.shape),
      weights_(loadWeights(config, kernels, backend, cache, loaded)) {
  KvPlan kv = {};
  kv.type = config.kvType;
  kv.layerCount = config.layerEnd - config.layerBegin;
  kv.blockCount = config.blockCount;
  kv.tilesPerBlock = config.blockSize / kKeyTile;
  kv.headCount = config.shape.headCount;
  kv.kvHeadCount = config.shape.kvHeadCount;
  kv.headDim = config.shape.headDim;
  kv.ropeDim = config.shape.ropeDim;
  kv.ropeHalves = config.shape.form.ropeHalves;
  kv.ropeAxes = config.shape.form.ropeAxes;
  kv.prefixLength = config.prefix ? config.prefix->length : 0;
  allocating("the KV cache of " + std::to_string(kv.blockCount) + " blocks",
             [&] { backend_.allocateKvCache(kv); });
  const int tile = std::min(config.maxRows, rowTile_);
  allocating("the workspace of steps of " + std::to_string(config.maxRows) + " rows", [&] {
    backend_.reserveRows(tile, config.maxRows, config.shape.hiddenSize);
    if (hasExperts()) backend_.reserveExperts(config.shape.experts, config.shape.hiddenSize, tile);
    allocateWorkspace();
  });
}

std::unique_ptr<DeviceBuffer> LayerLoop::workspace(int64_t rows, int64_t columns) {
  const uint64_t bytes = static_cast<uint64_t>(rows) * columns * sizeof(float);
  workspaceBytes_ += bytes;
  return backend_.allocate(bytes);
}

void LayerLoop::allocateWorkspace() {
  const ModelShape& shape = config_.shape;
  const int64_t rows = config_.maxRows;
  const int64_t tile = std::min<int64_t>(rows, rowTile_);
  if (config_.contextRows > 0) parked_ = workspace(config_.contextRows, shape.hiddenSize);
  hidden_ = workspace(rows, shape.hiddenSize);
  queries_ = workspace(rows, shape.queryColumns());
  sequenceOfRow_.resize(rows);
  slotOfRow_.resize(rows);
  lastVisibleOfRow_.resize(rows);
  positionOfRow_.resize(rows);
  rotations_.resize(rows * shape.ropeDim);
  if (weights_.embedding) embedded_.resize(rows * shape.hiddenSize * dtypeBytes(config_.dtype));
  normed_ = workspace(tile, shape.hiddenSize);
  qkv_ = workspace(tile, shape.qkvColumns());
  attended_ = workspace(tile, shape.queryColumns());
  delta_ = workspace(tile, shape.hiddenSize);
  const int64_t ffnSize = std::max(shape.ffnSize, shape.experts.sharedFfnSize);
  ffnInner_ = workspace(tile, shape.form.ffnInputs() * ffnSize);
  activated_ = workspace(tile, ffnSize);
  if (hasExperts()) mixed_ = workspace(tile, shape.hiddenSize);
  if (weights_.head) {
    const int64_t logitRows = std::min<int64_t>(rows, kLogitTile);
    sampledRows_ = workspace(logitRows, shape.hiddenSize);
    logits_ = workspace(logitRows, shape.tokenCount);
    hostLogits_.resize(logitRows * shape.tokenCount);
    sampler_ = std::make_unique<Sampler>(kernels_, shape.tokenCount, pool_.threads());
  }
  workspaceBytes_ += backend_.scratchBytes();
  if (!backend_.inHostMemory()) return;
  workspaceBytes_ += embedded_.size() + rotations_.size() * sizeof(float) +
                     rows * (3 * sizeof(int32_t) + sizeof(RowPosition));
  if (sampler_) workspaceBytes_ += sampler_->scratchBytes() + hostLogits_.size() * sizeof(float);
}

void LayerLoop::run(const StepInput& input, StepOutput& output) {
  for (const BlockCopy& copy : input.copies) backend_.copyBlock(copy.from, copy.to);
  if (input.slice) runSlice(*input.slice, output);
  if (input.rowCount > 0) runRows(input, output);
}

// The same layers in the same order as for a context that comes whole, on rows that wait in between.
void LayerLoop::runSlice(const SliceInput& slice, StepOutput& output) {
  const int rowCount = slice.rows.rowCount;
  placeRows(&slice.rows, 1, rowCount);
  if (!slice.tokenIds.empty()) {
    embed(*parked_, slice.tokenIds);
  } else if (!slice.activations.empty()) {
    backend_.copyRowsIn(*parked_, slice.activations.data(), config_.dtype, rowCount,
                        config_.shape.hiddenSize);
  }
  for (int layer = slice.layerBegin; layer < slice.layerEnd; layer++)
    runLayer(*parked_, layer - config_.layerBegin, rowCount);
  if (slice.layerEnd == config_.layerEnd && !weights_.head)
    output.sliceActivations = rowsOut(*parked_, rowCount);
  // The step's rows are placed in the same memory.
  waitUntilIdle();
}

void LayerLoop::runRows(const StepInput& input, StepOutput& output) {
  placeRows(input.sequences.data(), input.sequences.size(), input.rowCount);
  if (weights_.embedding) {
    embed(*hidden_, input.tokenIds);
  } else {
    backend_.copyRowsIn(*hidden_, input.activations.data(), config_.dtype, input.rowCount,
                        config_.shape.hiddenSize);
  }
  if (backend_.beginLayers()) {
    for (int layer = 0; layer < static_cast<int>(weights_.layers.size()); layer++)
      runLayer(*hidden_, layer, input.rowCount);
  }
  backend_.endLayers();
  if (weights_.head) {
    runHead(input, output);
  } else {
    output.activations = rowsOut(*hidden_, input.rowCount);
  }
  waitUntilIdle();
}

std::vector<uint8_t> LayerLoop::rowsOut(const DeviceBuffer& hidden, int rowCount) {
  const int hiddenSize = config_.shape.hiddenSize;
  std::vector<uint8_t> bytes(static_cast<size_t>(rowCount) * hiddenSize * dtypeBytes(config_.dtype));
  backend_.copyRowsOut(bytes.data(), hidden, config_.dtype, rowCount, hiddenSize);
  return bytes;
}

// Says for every row to which sequence it belongs, where it is stored, what it sees and how it is rotated.
void LayerLoop::placeRows(const SequenceRows* sequences, size_t sequenceCount, int rowCount) {
  const int prefixLength = config_.prefix ? config_.prefix->length : 0;
  int row = 0;
  for (size_t i = 0; i < sequenceCount; i++) {
    const SequenceRows& sequence = sequences[i];
    const int context = sequence.contextLength;
    for (int j = 0; j < sequence.rowCount; j++, row++) {
      const int index = sequence.startPosition + j;
      const bool generated = index >= context;
      sequenceOfRow_[row] = static_cast<int32_t>(i);
      slotOfRow_[row] = prefixLength + index;
      lastVisibleOfRow_[row] = prefixLength + std::max(index, context - 1);
      positionOfRow_[row] = {generated && sequence.maskPosition >= 0 ? sequence.maskPosition : index,
                             generated ? index - context + 1 : 0};
    }
  }
  const int64_t ropeDim = config_.shape.ropeDim;
  pool_.forEach(rowCount, [&](int64_t i, int) {
    const RowPosition& at = positionOfRow_[i];
    rope_.rotation(rotations_.data() + i * ropeDim, at.position, at.blockPosition);
  });
  StepRows rows = {};
  rows.sequences = sequences;
  rows.sequenceCount = static_cast<int>(sequenceCount);
  rows.rowCount = rowCount;
  rows.sequenceOfRow = sequenceOfRow_.data();
  rows.slotOfRow = slotOfRow_.data();
  rows.lastVisibleOfRow = lastVisibleOfRow_.data();
  rows.rotations = rotations_.data();
  allocating("the tables of a step", [&] { backend_.beginStep(rows); });
}

// The rows of the embedding, with those of learned positions where there are such, rounded to the type of
// the residual stream.
void LayerLoop::embed(DeviceBuffer& hidden, const std::vector<int32_t>& tokenIds) {
  const int hiddenSize = config_.shape.hiddenSize;
  std::vector<float> row(hiddenSize);
  std::vector<float> other(hiddenSize);
  const auto read = [&](float* out, const MappedTable& table, int index) {
    kernels_.widen[static_cast<int>(table.dtype())](out, table.row(index), hiddenSize);
  };
  const auto addRow = [&](const std::unique_ptr<MappedTable>& table, int index) {
    if (table == nullptr) return;
    read(other.data(), *table, index);
    kernels_.add(row.data(), other.data(), hiddenSize);
  };
  const size_t rowBytes = static_cast<size_t>(hiddenSize) * dtypeBytes(config_.dtype);
  for (size_t i = 0; i < tokenIds.size(); i++) {
    read(row.data(), *weights_.embedding, tokenIds[i]);
    addRow(weights_.positionEmbedding, positionOfRow_[i].position);
    addRow(weights_.blockPositionEmbedding, positionOfRow_[i].blockPosition);
    kernels_.narrow[static_cast<int>(config_.dtype)](embedded_.data() + i * rowBytes, row.data(), hiddenSize);
  }
  backend_.copyRowsIn(hidden, embedded_.data(), config_.dtype, static_cast<int>(tokenIds.size()), hiddenSize);
}

// All keys and values of the step are stored before the first query reads any, so a row may see rows of a
// later tile where the mask allows it. See CANON.md, Layer.
void LayerLoop::runLayer(DeviceBuffer& hidden, int layer, int rowCount) {
  const ModelShape& shape = config_.shape;
  const LayerWeights& weights = weights_.layers[layer];
  const HeadNorms headNorms = {weights.queryNorm.get(), weights.keyNorm.get(),
                               static_cast<float>(shape.normEps)};

  if (weights.prefix) backend_.storePrefix(*weights.prefix, layer);
  for (int row = 0; row < rowCount; row += rowTile_) {
    const int rows = std::min(rowTile_, rowCount - row);
    norm(*normed_, hidden, row, rows, weights.attentionNorm);
    backend_.matmul(*qkv_, *normed_, 0, rows, *weights.qkvWeight, weights.qkvBias.get());
    backend_.storeKeysValues(*queries_, *qkv_, layer, row, rows, headNorms);
  }
  for (int row = 0; row < rowCount; row += rowTile_) {
    const int rows = std::min(rowTile_, rowCount - row);
    backend_.attention(*attended_, *queries_, layer, row, rows);
    backend_.matmul(*delta_, *attended_, 0, rows, *weights.attentionOut, weights.attentionOutBias.get());
    // The input of the branch once more, where the first loop's is that of another tile by now.
    if (shape.form.normedResidual && rowCount > rowTile_)
      norm(*normed_, hidden, row, rows, weights.attentionNorm);
    addDelta(hidden, row, rows, weights.attentionOutNorm.get(), DType::kFloat32);
    norm(*normed_, hidden, row, rows, weights.ffnNorm);
    runFfn(weights, rows);
    addDelta(hidden, row, rows, weights.ffnOutNorm.get(), config_.dtype);
  }
}

// delta_ = feed-forward part of normed_, experts included
void LayerLoop::runFfn(const LayerWeights& weights, int rows) {
  const int ffnSize = weights.ffnDown->k;
  // First, for a backend that has brought normed_ into the form that products want.
  if (weights.experts) backend_.mixExperts(*mixed_, *normed_, rows, *weights.experts);
  backend_.matmul(*ffnInner_, *normed_, 0, rows, *weights.ffnUp, weights.ffnUpBias.get());
  switch (config_.shape.form.ffn) {
    case FfnKind::kGatedSilu:
      backend_.gatedSilu(*activated_, *ffnInner_, rows, ffnSize);
      break;
    case FfnKind::kGelu:
      backend_.gelu(*activated_, *ffnInner_, rows, ffnSize);
      break;
    case FfnKind::kGatedGelu:
      backend_.gatedGelu(*activated_, *ffnInner_, rows, ffnSize);
      break;
  }
  backend_.matmul(*delta_, *activated_, 0, rows, *weights.ffnDown, weights.ffnDownBias.get());
  if (weights.experts) {
    backend_.add(*delta_, 0, *mixed_, rows, config_.shape.hiddenSize, DType::kFloat32);
  }
}

void LayerLoop::norm(DeviceBuffer& y, const DeviceBuffer& x, int row, int rows, const NormWeights& weights) {
  const int size = config_.shape.hiddenSize;
  const float eps = static_cast<float>(config_.shape.normEps);
  if (config_.shape.form.norm == NormKind::kLayer) {
    backend_.layerNorm(y, x, row, rows, *weights.weight, *weights.bias, size, eps);
  } else {
    backend_.rmsNorm(y, x, row, rows, *weights.weight, size, eps);
  }
}

// Adds what attention or the feed-forward part gave, normed where the family does, to the residual stream,
// or to its own input, which is in normed_, where that is the family's residual; rounded to the type.
void LayerLoop::addDelta(DeviceBuffer& hidden, int row, int rows, const DeviceBuffer* outNorm, DType dtype) {
  const ModelShape& shape = config_.shape;
  if (shape.form.normedResidual) {
    const float scale = static_cast<float>(shape.form.residualScale);
    backend_.scaleAdd(hidden, row, *normed_, scale, *delta_, rows, shape.hiddenSize, dtype);
    return;
  }
  if (outNorm != nullptr) {
    const float eps = static_cast<float>(shape.normEps);
    backend_.rmsNorm(*normed_, *delta_, 0, rows, *outNorm, shape.hiddenSize, eps);
  }
  backend_.add(hidden, row, outNorm == nullptr ? *delta_ : *normed_, rows, shape.hiddenSize, dtype);
}

// Logits only of the rows that somebody asked for, a tile of them at a time. Those of a whole draft are
// computed together: the weights of the head are read once for all of them.
void LayerLoop::runHead(const StepInput& input, StepOutput& output) {
  Drawn drawn(input.samples.size());
  output.scores.resize(input.scores.size());
  std::vector<int32_t> wanted;
  for (const SampleRequest& request : input.samples) {
    for (size_t i = 0; i <= request.draft.size(); i++) {
      wanted.push_back(request.row + static_cast<int32_t>(i));
    }
  }
  for (const ScoreRequest& request : input.scores) wanted.push_back(request.row);
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());

  for (size_t begin = 0; begin < wanted.size(); begin += kLogitTile) {
    const size_t end = std::min(wanted.size(), begin + kLogitTile);
    sampleTile(input, {wanted.begin() + begin, wanted.begin() + end}, drawn, output);
  }
  for (std::vector<TokenResult>& results : drawn) {
    std::move(results.begin(), results.end(), std::back_inserter(output.samples));
  }
}

void LayerLoop::sampleTile(const StepInput& input, const std::vector<int32_t>& rows, Drawn& drawn,
                           StepOutput& output) {
  const ModelShape& shape = config_.shape;
  const int count = static_cast<int>(rows.size());
  backend_.gatherRows(*sampledRows_, *hidden_, rows.data(), count, shape.hiddenSize);
  norm(*normed_, *sampledRows_, 0, count, weights_.finalNorm);
  backend_.matmul(*logits_, *normed_, 0, count, *weights_.head, nullptr);
  backend_.copyOut(hostLogits_.data(), *logits_,
                   static_cast<uint64_t>(count) * shape.tokenCount * sizeof(float));
  waitUntilIdle();

  const auto logitsOf = [&](int row) -> const float* {
    const auto found = std::lower_bound(rows.begin(), rows.end(), row);
    if (found == rows.end() || *found != row) return nullptr;
    return hostLogits_.data() + (found - rows.begin()) * static_cast<int64_t>(shape.tokenCount);
  };
  const int64_t samples = static_cast<int64_t>(input.samples.size());
  pool_.forEach(samples + static_cast<int64_t>(input.scores.size()), [&](int64_t i, int thread) {
    if (i >= samples) {
      const ScoreRequest& request = input.scores[i - samples];
      const float* logits = logitsOf(request.row);
      if (logits != nullptr) output.scores[i - samples] = sampler_->score(logits, request, thread);
      return;
    }
    // Rows of a draft one after the other; tiles come in ascending order, so the next one has those that
    // follow.
    const SampleRequest& request = input.samples[i];
    while (!isSettled(request, drawn[i])) {
      const int index = static_cast<int>(drawn[i].size());
      const float* logits = logitsOf(request.row + index);
      if (logits == nullptr) return;
      drawn[i].push_back(sampler_->sample(logits, request, index, thread));
    }
  });
}

void LayerLoop::waitUntilIdle() {
  std::promise<void> idle;
  backend_.whenIdle([&idle] { idle.set_value(); });
  idle.get_future().wait();
}

}  // namespace glm_relay
