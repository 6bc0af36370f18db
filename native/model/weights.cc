#include "model/weights.h"

namespace glm_relay {

namespace {

class Loader {
 public:
  Loader(const KernelTable& kernels, Backend& backend) : kernels_(kernels), backend_(backend) {}

  uint64_t bytes = 0;

  // The first `rows` rows of a matrix.
  std::unique_ptr<DeviceMatrix> matrix(const TensorSource& source, int rows) {
    const MappedTensor tensor(source);
    tensor.expectSequentialRead();
    auto matrix = backend_.loadMatrix({tensor.data(), source.dtype, rows, source.shape[1]});
    bytes += matrix->bytes;
    return matrix;
  }
  std::unique_ptr<DeviceMatrix> matrix(const TensorSource& source) { return matrix(source, source.shape[0]); }

  // Norm weights and biases are small and are kept as float32, which is exact.
  std::unique_ptr<DeviceBuffer> vector(const TensorSource& source) {
    const MappedTensor tensor(source);
    std::vector<float> values(source.shape[0]);
    kernels_.widen[static_cast<int>(source.dtype)](values.data(), tensor.data(), source.shape[0]);
    auto buffer = backend_.allocate(values.size() * sizeof(float));
    backend_.copyIn(*buffer, values.data(), values.size() * sizeof(float));
    bytes += buffer->bytes;
    return buffer;
  }

 private:
  const KernelTable& kernels_;
  Backend& backend_;
};

}  // namespace

StageWeights loadWeights(const StageConfig& config, const KernelTable& kernels, Backend& backend) {
  StageWeights weights;
  Loader load(kernels, backend);
  for (const LayerTensors& tensors : config.layers) {
    LayerWeights layer;
    layer.attentionNorm = load.vector(tensors.attentionNorm);
    layer.qkvWeight = load.matrix(tensors.qkvWeight);
    if (tensors.qkvBias) layer.qkvBias = load.vector(*tensors.qkvBias);
    layer.attentionOut = load.matrix(tensors.attentionOut);
    layer.ffnNorm = load.vector(tensors.ffnNorm);
    layer.ffnGateUp = load.matrix(tensors.ffnGateUp);
    layer.ffnDown = load.matrix(tensors.ffnDown);
    weights.layers.push_back(std::move(layer));
  }
  if (config.embedding) {
    weights.embedding = std::make_unique<MappedTensor>(*config.embedding);
    load.bytes += config.embedding->byteLength;
  }
  if (config.head) {
    weights.finalNorm = load.vector(*config.finalNorm);
    weights.head = load.matrix(*config.head, config.shape.tokenCount);
  }
  weights.bytes = load.bytes;
  return weights;
}

}  // namespace glm_relay
