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
  std::unique_ptr<DeviceMatrix> matrix(const TensorParts& parts, int rows, const WeightFormat& format) {
    const TensorSource& first = parts.front();
    std::vector<MappedTensor> tensors;
    std::vector<HostRows> pieces;
    tensors.reserve(parts.size());
    for (const TensorSource& part : parts) {
      const MappedTensor& tensor = tensors.emplace_back(part);
      tensor.expectSequentialRead();
      pieces.push_back({tensor.data(), part.shape[0]});
    }
    const uint64_t rowBytes = first.byteLength / first.shape[0];
    int rowsRead = 0;
    const auto consumed = [&](int rowsDone) {
      loaded_((rowsDone - rowsRead) * rowBytes);
      rowsRead = rowsDone;
      for (const MappedTensor& tensor : tensors) {
        const int count = std::min(rowsDone, tensor.source().shape[0]);
        tensor.release(count * rowBytes);
        rowsDone -= count;
      }
    };
    auto matrix = naming(parts, [&] {
      return backend_.loadMatrix({pieces, first.dtype, rows, first.shape[1], format, consumed});
    });
    if (format.type != WeightType::kStored) weights_.roundings.push_back({first.role, matrix->rounding});
    weights_.bytes += matrix->bytes;
    return matrix;
  }
  std::unique_ptr<DeviceMatrix> matrix(const TensorParts& parts, const WeightFormat& format) {
    return matrix(parts, rowsOf(parts), format);
  }

  // Norm weights and biases are small and are kept as float32, which is exact.
  std::unique_ptr<DeviceBuffer> vector(const TensorParts& parts) {
    std::vector<float> values(rowsOf(parts));
    float* out = values.data();
    for (const TensorSource& part : parts) {
      const MappedTensor tensor(part);
      const int size = part.shape[0];
      naming({part}, [&] { requireFinite(tensor.data(), part.dtype, size, 0, size); });
      kernels_.widen[static_cast<int>(part.dtype)](out, tensor.data(), size);
      out += size;
      loaded_(part.byteLength);
    }
    auto buffer = backend_.allocate(values.size() * sizeof(float));
    backend_.copyIn(*buffer, values.data(), values.size() * sizeof(float));
    weights_.bytes += buffer->bytes;
    return buffer;
  }
  // None where there are no parts.
  std::unique_ptr<DeviceBuffer> optionalVector(const TensorParts& parts) {
    return parts.empty() ? nullptr : vector(parts);
  }
  std::unique_ptr<DeviceBuffer> optionalVector(const std::optional<TensorSource>& source) {
    return source ? vector({*source}) : nullptr;
  }

  // Stays mapped. Looking at all of it also brings it into memory before the first token needs it.
  std::unique_ptr<MappedTensor> embedding(const TensorSource& source) {
    auto tensor = std::make_unique<MappedTensor>(source);
    const int columns = source.shape[1];
    const uint64_t rowBytes = static_cast<uint64_t>(columns) * dtypeBytes(source.dtype);
    naming({source}, [&] {
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
  static auto naming(const TensorParts& parts, Read read) -> decltype(read()) {
    try {
      return read();
    } catch (const WeightError& error) {
      const TensorSource& source = parts.front();
      throw std::runtime_error("tensor " + source.role + " of " + source.file + ": " + error.what());
    }
  }

  static int rowsOf(const TensorParts& parts) {
    int rows = 0;
    for (const TensorSource& part : parts) rows += part.shape[0];
    return rows;
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
  const auto add = [&](const TensorParts& parts) {
    for (const TensorSource& part : parts) bytes += part.byteLength;
  };
  const auto addOptional = [&](const std::optional<TensorSource>& source) {
    if (source) bytes += source->byteLength;
  };
  for (const LayerTensors& layer : config.layers) {
    add({layer.attentionNorm, layer.attentionOut, layer.ffnNorm, layer.ffnDown});
    add(layer.qkvWeight);
    add(layer.qkvBias);
    add(layer.ffnGateUp);
    addOptional(layer.attentionOutNorm);
    addOptional(layer.ffnOutNorm);
  }
  addOptional(config.embedding);
  addOptional(config.finalNorm);
  if (config.head) bytes += headBytes(config);
  return bytes;
}

StageWeights loadWeights(const StageConfig& config, const KernelTable& kernels, Backend& backend,
                         const std::function<void(uint64_t bytes)>& loaded) {
  StageWeights weights;
  Loader load(kernels, backend, loaded, weights);
  for (const LayerTensors& tensors : config.layers) {
    LayerWeights layer;
    layer.attentionNorm = load.vector({tensors.attentionNorm});
    layer.qkvWeight = load.matrix(tensors.qkvWeight, config.weights);
    layer.qkvBias = load.optionalVector(tensors.qkvBias);
    layer.attentionOut = load.matrix({tensors.attentionOut}, config.weights);
    layer.attentionOutNorm = load.optionalVector(tensors.attentionOutNorm);
    layer.ffnNorm = load.vector({tensors.ffnNorm});
    layer.ffnGateUp = load.matrix(tensors.ffnGateUp, config.weights);
    layer.ffnDown = load.matrix({tensors.ffnDown}, config.weights);
    layer.ffnOutNorm = load.optionalVector(tensors.ffnOutNorm);
    weights.layers.push_back(std::move(layer));
  }
  if (config.embedding) weights.embedding = load.embedding(*config.embedding);
  if (config.head) {
    weights.finalNorm = load.vector({*config.finalNorm});
    weights.head = load.matrix({*config.head}, config.shape.tokenCount, config.headWeights);
  }
  return weights;
}

}  // namespace glm_relay
