#include "model/weights.h"

#include <algorithm>
#include <stdexcept>

#include "quant/finite.h"

namespace glm_relay {

namespace {

// Of the embedding, looked at between two reports of progress.
constexpr int kEmbeddingRows = 1024;

class Loader {
 public:
  Loader(const KernelTable& kernels, Backend& backend, const std::function<void(uint64_t)>& loaded,
         StageWeights& weights)
      : kernels_(kernels), backend_(backend), loaded_(loaded), weights_(weights) {}

  // The first `rows` rows of a matrix.
  std::unique_ptr<DeviceMatrix> matrix(const TensorSource& source, int rows, const WeightFormat& format) {
    const MappedTensor tensor(source);
    tensor.expectSequentialRead();
    const uint64_t rowBytes = source.byteLength / source.shape[0];
    int rowsRead = 0;
    const auto consumed = [&](int rowsDone) {
      tensor.release(rowsDone * rowBytes);
      loaded_((rowsDone - rowsRead) * rowBytes);
      rowsRead = rowsDone;
    };
    auto matrix = naming(source, [&] {
      return backend_.loadMatrix({tensor.data(), source.dtype, rows, source.shape[1], format, consumed});
    });
    if (format.type != WeightType::kStored) weights_.roundings.push_back({source.role, matrix->rounding});
    weights_.bytes += matrix->bytes;
    return matrix;
  }
  std::unique_ptr<DeviceMatrix> matrix(const TensorSource& source, const WeightFormat& format) {
    return matrix(source, source.shape[0], format);
  }

  // Norm weights and biases are small and are kept as float32, which is exact.
  std::unique_ptr<DeviceBuffer> vector(const TensorSource& source) {
    const MappedTensor tensor(source);
    const int size = source.shape[0];
    naming(source, [&] { requireFinite(tensor.data(), source.dtype, size, 0, size); });
    std::vector<float> values(size);
    kernels_.widen[static_cast<int>(source.dtype)](values.data(), tensor.data(), size);
    auto buffer = backend_.allocate(values.size() * sizeof(float));
    backend_.copyIn(*buffer, values.data(), values.size() * sizeof(float));
    weights_.bytes += buffer->bytes;
    loaded_(source.byteLength);
    return buffer;
  }

  // Stays mapped. Looking at all of it also brings it into memory before the first token needs it.
  std::unique_ptr<MappedTensor> embedding(const TensorSource& source) {
    auto tensor = std::make_unique<MappedTensor>(source);
    const int columns = source.shape[1];
    const uint64_t rowBytes = static_cast<uint64_t>(columns) * dtypeBytes(source.dtype);
    naming(source, [&] {
      for (int row = 0; row < source.shape[0]; row += kEmbeddingRows) {
        const int rows = std::min(kEmbeddingRows, source.shape[0] - row);
        requireFinite(tensor->data() + row * rowBytes, source.dtype, static_cast<int64_t>(rows) * columns,
                      row, columns);
        loaded_(rows * rowBytes);
      }
    });
    weights_.bytes += source.byteLength;
    return tensor;
  }

 private:
  // Runs `read`; what it finds wrong with the content is told with the tensor's name.
  template <class Read>
  static auto naming(const TensorSource& source, Read read) -> decltype(read()) {
    try {
      return read();
    } catch (const WeightError& error) {
      throw std::runtime_error("tensor " + source.role + " of " + source.file + ": " + error.what());
    }
  }

  const KernelTable& kernels_;
  Backend& backend_;
  const std::function<void(uint64_t)>& loaded_;
  StageWeights& weights_;
};

uint64_t headBytes(const StageConfig& config) {
  const TensorSource& head = *config.head;
  return head.byteLength / head.shape[0] * config.shape.tokenCount;
}

}  // namespace

uint64_t storedBytes(const StageConfig& config) {
  uint64_t bytes = 0;
  for (const LayerTensors& layer : config.layers) {
    bytes += layer.attentionNorm.byteLength + layer.qkvWeight.byteLength + layer.attentionOut.byteLength +
             layer.ffnNorm.byteLength + layer.ffnGateUp.byteLength + layer.ffnDown.byteLength;
    if (layer.qkvBias) bytes += layer.qkvBias->byteLength;
  }
  if (config.embedding) bytes += config.embedding->byteLength;
  if (config.head) bytes += config.finalNorm->byteLength + headBytes(config);
  return bytes;
}

StageWeights loadWeights(const StageConfig& config, const KernelTable& kernels, Backend& backend,
                         const std::function<void(uint64_t bytes)>& loaded) {
  StageWeights weights;
  Loader load(kernels, backend, loaded, weights);
  for (const LayerTensors& tensors : config.layers) {
    LayerWeights layer;
    layer.attentionNorm = load.vector(tensors.attentionNorm);
    layer.qkvWeight = load.matrix(tensors.qkvWeight, config.weights);
    if (tensors.qkvBias) layer.qkvBias = load.vector(*tensors.qkvBias);
    layer.attentionOut = load.matrix(tensors.attentionOut, config.weights);
    layer.ffnNorm = load.vector(tensors.ffnNorm);
    layer.ffnGateUp = load.matrix(tensors.ffnGateUp, config.weights);
    layer.ffnDown = load.matrix(tensors.ffnDown, config.weights);
    weights.layers.push_back(std::move(layer));
  }
  if (config.embedding) weights.embedding = load.embedding(*config.embedding);
  if (config.head) {
    weights.finalNorm = load.vector(*config.finalNorm);
    weights.head = load.matrix(*config.head, config.shape.tokenCount, config.headWeights);
  }
  return weights;
}

}  // namespace glm_relay
