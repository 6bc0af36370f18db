#include "model/weights.h"

#include <utility>

#include "model/prefix.h"

namespace glm_relay {

namespace {

uint64_t headBytes(const StageConfig& config) {
  const TensorSource& first = config.head.front();
  return first.byteLength / first.shape[0] * config.shape.tokenCount;
}

class ByteSum {
 public:
  uint64_t bytes = 0;

  void add(const TensorSource& source) { bytes += source.byteLength; }
  void add(const std::optional<TensorSource>& source) {
    if (source) add(*source);
  }
  void add(const TensorParts& parts) {
    for (const TensorSource& part : parts) add(part);
  }
  void add(const LayerTensors& layer) {
    for (const TensorParts* parts :
         {&layer.qkvWeight, &layer.qkvBias, &layer.attentionOut, &layer.attentionOutBias, &layer.ffnUp,
          &layer.ffnUpBias, &layer.ffnDown, &layer.ffnDownBias}) {
      add(*parts);
    }
    for (const auto* source : {&layer.attentionNormBias, &layer.queryNorm, &layer.keyNorm,
                               &layer.attentionOutNorm, &layer.ffnNormBias, &layer.ffnOutNorm}) {
      add(*source);
    }
    add(layer.attentionNorm);
    add(layer.ffnNorm);
    if (layer.router) {
      add(layer.router->weight);
      add(layer.router->bias);
    }
    for (const ExpertTensors& expert : layer.experts) {
      add(expert.up);
      add(expert.down);
    }
  }
};

template <class Load>
std::unique_ptr<ExpertLayer> loadExperts(const LayerTensors& tensors, const StageConfig& config, Load& load) {
  const int hiddenSize = config.shape.hiddenSize;
  auto layer = std::make_unique<ExpertLayer>();
  // The choice of experts is not rounded: a row that goes to another expert is another row.
  layer->router = load.matrix({tensors.router->weight}, hiddenSize, WeightFormat{});
  layer->bias = load.vector(tensors.router->bias);
  for (const ExpertTensors& expert : tensors.experts) {
    layer->experts.push_back({load.matrix(expert.up, hiddenSize, config.weights),
                              load.matrix(expert.down, config.shape.experts.ffnSize, config.weights)});
  }
  return layer;
}

template <class Load>
LayerWeights loadLayer(const LayerTensors& tensors, const StageConfig& config, Load& load) {
  const ModelShape& shape = config.shape;
  const int ffnSize = tensors.router ? shape.experts.sharedFfnSize : shape.ffnSize;
  LayerWeights layer;
  layer.attentionNorm = {load.vector(tensors.attentionNorm), load.vector(tensors.attentionNormBias)};
  layer.qkvWeight = load.matrix(tensors.qkvWeight, shape.hiddenSize, config.weights);
  layer.qkvBias = load.vector(tensors.qkvBias);
  layer.queryNorm = load.vector(tensors.queryNorm);
  layer.keyNorm = load.vector(tensors.keyNorm);
  layer.attentionOut = load.matrix(tensors.attentionOut, shape.queryColumns(), config.weights);
  layer.attentionOutBias = load.vector(tensors.attentionOutBias);
  layer.attentionOutNorm = load.vector(tensors.attentionOutNorm);
  layer.ffnNorm = {load.vector(tensors.ffnNorm), load.vector(tensors.ffnNormBias)};
  layer.ffnUp = load.matrix(tensors.ffnUp, shape.hiddenSize, config.weights);
  layer.ffnUpBias = load.vector(tensors.ffnUpBias);
  layer.ffnDown = load.matrix(tensors.ffnDown, ffnSize, config.weights);
  layer.ffnDownBias = load.vector(tensors.ffnDownBias);
  layer.ffnOutNorm = load.vector(tensors.ffnOutNorm);
  if (tensors.router) layer.experts = loadExperts(tensors, config, load);
  return layer;
}

struct HeadWeights {
  NormWeights norm;
  std::unique_ptr<DeviceMatrix> matrix;
};

template <class Load>
HeadWeights loadHead(const StageConfig& config, Load& load) {
  const ModelShape& shape = config.shape;
  HeadWeights head;
  head.norm = {load.vector(config.finalNorm), load.vector(config.finalNormBias)};
  head.matrix = load.matrix(config.head, shape.tokenCount, shape.hiddenSize, config.headWeights);
  return head;
}

void prepareExperts(LayerWeights& weights, int layer, Backend& backend) {
  if (weights.experts == nullptr) return;
  allocating("the experts of layer " + std::to_string(layer),
             [&] { backend.prepareExperts(*weights.experts); });
}

// Memory for all that `loading` asks for.
template <class Loading>
void reserve(Backend& backend, const std::string& what, Loading loading) {
  TensorSizes load;
  loading(load);
  allocating("the weights of " + what, [&] { backend.reserveWeights(load.sizes()); });
}

}  // namespace

uint64_t storedBytes(const StageConfig& config) {
  ByteSum sum;
  for (const LayerTensors& layer : config.layers) sum.add(layer);
  sum.add(config.embedding);
  sum.add(config.positionEmbedding);
  sum.add(config.blockPositionEmbedding);
  sum.add(config.finalNorm);
  sum.add(config.finalNormBias);
  if (!config.head.empty()) sum.bytes += headBytes(config);
  return sum.bytes;
}

StageWeights loadWeights(const StageConfig& config, const KernelTable& kernels, Backend& backend,
                         WeightCache* cache, const std::function<void(uint64_t bytes)>& loaded) {
  StageWeights weights;
  TensorLoader load(kernels, backend, loaded);
  int layer = config.layerBegin;
  for (const LayerTensors& tensors : config.layers) {
    auto part = cache == nullptr ? nullptr : cache->openLayer(tensors, layer, config.weights);
    load.useCache(part.get());
    reserve(backend, "layer " + std::to_string(layer),
            [&](TensorSizes& sizes) { loadLayer(tensors, config, sizes); });
    weights.layers.push_back(loadLayer(tensors, config, load));
    prepareExperts(weights.layers.back(), layer, backend);
    if (cache != nullptr) cache->keep(std::move(part));
    layer++;
  }
  load.useCache(nullptr);
  if (config.prefix) {
    allocating("the prefix encoder", [&] { loadPrefix(config, kernels, backend, load, weights); });
  }
  weights.embedding = load.table(config.embedding);
  weights.positionEmbedding = load.table(config.positionEmbedding);
  weights.blockPositionEmbedding = load.table(config.blockPositionEmbedding);
  if (!config.head.empty()) {
    auto part = cache == nullptr ? nullptr : cache->openHead(config);
    load.useCache(part.get());
    reserve(backend, "the head", [&](TensorSizes& sizes) { loadHead(config, sizes); });
    HeadWeights head = loadHead(config, load);
    weights.finalNorm = std::move(head.norm);
    weights.head = std::move(head.matrix);
    load.useCache(nullptr);
    if (cache != nullptr) cache->keep(std::move(part));
  }
  weights.bytes = load.bytes();
  weights.roundings = load.takeRoundings();
  return weights;
}

}  // namespace glm_relay
