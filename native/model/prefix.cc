#include "model/prefix.h"

#include "kernels/canon_double.h"

namespace glm_relay {

namespace {

// In float64 from our own exp, rounded once. Beyond 20 it is 1 to the last bit of a float.
float tanhOf(double x) {
  if (x > 20.0) return 1.0f;
  if (x < -20.0) return -1.0f;
  const double twice = canonExp64(2.0 * x);
  return static_cast<float>((twice - 1.0) / (twice + 1.0));
}

// Rows [row, row + rows) of a tensor.
TensorSource rowsOf(const TensorSource& source, int row, int rows) {
  TensorSource part = source;
  const uint64_t rowBytes = source.byteLength / source.shape[0];
  part.byteOffset += row * rowBytes;
  part.byteLength = rows * rowBytes;
  part.shape[0] = rows;
  return part;
}

std::vector<float> widened(const TensorSource& source, const KernelTable& kernels, TensorLoader& load) {
  const auto table = load.table(TensorParts{source});
  const int columns = source.shape[1];
  std::vector<float> values(static_cast<size_t>(source.shape[0]) * columns);
  for (int row = 0; row < source.shape[0]; row++) {
    float* to = values.data() + static_cast<size_t>(row) * columns;
    kernels.widen[static_cast<int>(source.dtype)](to, table->row(row), columns);
  }
  return values;
}

std::unique_ptr<DeviceBuffer> buffer(Backend& backend, const std::vector<float>& values) {
  auto to = backend.allocate(values.size() * sizeof(float));
  backend.copyIn(*to, values.data(), values.size() * sizeof(float));
  return to;
}

// x [rows, columns] times a linear layer.
std::unique_ptr<DeviceBuffer> multiply(const DeviceBuffer& x, int rows, int columns,
                                       const PrefixTensors::Linear& linear, Backend& backend,
                                       TensorLoader& load) {
  const auto weight = load.matrix({linear.weight}, columns, WeightFormat{});
  const auto bias = load.vector(linear.bias);
  auto y = backend.allocate(static_cast<uint64_t>(rows) * weight->n * sizeof(float));
  backend.matmul(*y, x, 0, rows, *weight, bias.get());
  return y;
}

}  // namespace

void loadPrefix(const StageConfig& config, const KernelTable& kernels, Backend& backend, TensorLoader& load,
                StageWeights& weights) {
  const PrefixTensors& prefix = *config.prefix;
  const int length = prefix.length;
  const int layerColumns = 2 * config.shape.kvColumns();
  const int layerCount = config.layerEnd - config.layerBegin;
  // What is read here is gone again when this is over, but for a buffer per layer.
  const std::function<void(uint64_t)> uncounted = [](uint64_t) {};
  TensorLoader passing(kernels, backend, uncounted);
  const std::vector<float> embedding = widened(prefix.embedding, kernels, passing);
  if (!prefix.out) {
    const int columns = prefix.embedding.shape[1];
    for (int i = 0; i < layerCount; i++) {
      std::vector<float> values;
      for (int row = 0; row < length; row++) {
        const float* from = embedding.data() + static_cast<size_t>(row) * columns +
                            static_cast<size_t>(config.layerBegin + i) * layerColumns;
        values.insert(values.end(), from, from + layerColumns);
      }
      weights.layers[i].prefix = buffer(backend, values);
    }
  } else {
    const int width = prefix.hidden->weight.shape[0];
    const auto input = buffer(backend, embedding);
    const auto linear = multiply(*input, length, prefix.embedding.shape[1], *prefix.hidden, backend, passing);
    std::vector<float> hidden(static_cast<size_t>(length) * width);
    backend.copyOut(hidden.data(), *linear, hidden.size() * sizeof(float));
    for (float& value : hidden) value = tanhOf(value);
    const auto activated = buffer(backend, hidden);
    for (int i = 0; i < layerCount; i++) {
      const int row = (config.layerBegin + i) * layerColumns;
      const PrefixTensors::Linear out = {rowsOf(prefix.out->weight, row, layerColumns),
                                         rowsOf(prefix.out->bias, row, layerColumns)};
      weights.layers[i].prefix = multiply(*activated, length, width, out, backend, passing);
    }
  }
  for (const LayerWeights& layer : weights.layers) load.addBytes(layer.prefix->bytes);
}

}  // namespace glm_relay
