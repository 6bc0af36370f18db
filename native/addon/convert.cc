#include "addon/convert.h"

#include <string>
#include <utility>

namespace glm_relay {

namespace {

int toInt(const Napi::Object& object, const char* name) {
  return object.Get(name).As<Napi::Number>().Int32Value();
}
double toDouble(const Napi::Object& object, const char* name) {
  return object.Get(name).As<Napi::Number>().DoubleValue();
}
// Sizes and file offsets: exact up to 2^53.
uint64_t toUnsigned(const Napi::Object& object, const char* name) {
  return static_cast<uint64_t>(object.Get(name).As<Napi::Number>().Int64Value());
}
std::string toString(const Napi::Object& object, const char* name) {
  return object.Get(name).As<Napi::String>().Utf8Value();
}
bool isNull(const Napi::Object& object, const char* name) { return object.Get(name).IsNull(); }

DType toDType(const std::string& name) {
  if (name == "float16") return DType::kFloat16;
  if (name == "bfloat16") return DType::kBfloat16;
  return DType::kFloat32;
}

KvType toKvType(const std::string& name) {
  if (name == "int8") return KvType::kInt8;
  return static_cast<KvType>(toDType(name));
}

WeightFormat toWeightFormat(const Napi::Object& owner, const char* name) {
  WeightFormat format;
  if (isNull(owner, name)) return format;
  const Napi::Object object = owner.Get(name).As<Napi::Object>();
  format.type = toString(object, "type") == "int4" ? WeightType::kInt4 : WeightType::kInt8;
  format.groupSize = toInt(object, "groupSize");
  format.scales = toString(object, "scales") == "search" ? ScaleChoice::kSearch : ScaleChoice::kAbsMax;
  return format;
}

std::vector<int32_t> toInts(const Napi::Object& object, const char* name) {
  const Napi::Int32Array array = object.Get(name).As<Napi::Int32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

// Calls body for every element of an array property.
template <class Body>
void forEachElement(const Napi::Object& object, const char* name, Body body) {
  const Napi::Array array = object.Get(name).As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) {
    const Napi::HandleScope scope(object.Env());
    body(array.Get(i).As<Napi::Object>());
  }
}

LayerForm toLayerForm(const Napi::Object& object) {
  LayerForm form;
  form.norm = toString(object, "norm") == "layer" ? NormKind::kLayer : NormKind::kRms;
  form.normedResidual = toString(object, "residual") == "normed";
  form.residualScale = toDouble(object, "residualScale");
  form.ropeHalves = toString(object, "ropePairs") == "halves";
  form.ropeAxes = toInt(object, "ropeAxes");
  const std::string ffn = toString(object, "ffn");
  if (ffn == "gelu") form.ffn = FfnKind::kGelu;
  if (ffn == "gatedGelu") form.ffn = FfnKind::kGatedGelu;
  return form;
}

ExpertShape toExpertShape(const Napi::Object& owner) {
  ExpertShape shape;
  if (isNull(owner, "experts")) return shape;
  const Napi::Object object = owner.Get("experts").As<Napi::Object>();
  shape.count = toInt(object, "count");
  shape.perToken = toInt(object, "perToken");
  shape.groups = toInt(object, "groups");
  shape.groupsPerToken = toInt(object, "groupsPerToken");
  shape.ffnSize = toInt(object, "ffnSize");
  shape.sharedFfnSize = toInt(object, "sharedFfnSize");
  shape.normalizeWeights = object.Get("normalizeWeights").As<Napi::Boolean>().Value();
  shape.scale = toDouble(object, "scale");
  return shape;
}

ModelShape toModelShape(const Napi::Object& object) {
  ModelShape shape = {};
  shape.hiddenSize = toInt(object, "hiddenSize");
  shape.layerCount = toInt(object, "layerCount");
  shape.headCount = toInt(object, "headCount");
  shape.kvHeadCount = toInt(object, "kvHeadCount");
  shape.headDim = toInt(object, "headDim");
  shape.ffnSize = toInt(object, "ffnSize");
  shape.vocabSize = toInt(object, "vocabSize");
  shape.tokenCount = toInt(object, "tokenCount");
  shape.ropeDim = toInt(object, "ropeDim");
  shape.ropeBase = toDouble(object, "ropeBase");
  shape.ropePositionDivisor = toDouble(object, "ropePositionDivisor");
  shape.normEps = toDouble(object, "normEps");
  shape.maxPositions = toInt(object, "maxPositions");
  shape.form = toLayerForm(object.Get("form").As<Napi::Object>());
  shape.experts = toExpertShape(object);
  return shape;
}

TensorSource toTensor(const Napi::Object& object, const std::string& role) {
  TensorSource source = {};
  source.role = role;
  source.file = toString(object, "file");
  source.byteOffset = toUnsigned(object, "byteOffset");
  source.byteLength = toUnsigned(object, "byteLength");
  source.dtype = toDType(toString(object, "dtype"));
  const Napi::Array shape = object.Get("shape").As<Napi::Array>();
  for (uint32_t i = 0; i < shape.Length(); i++) {
    source.shape.push_back(shape.Get(i).As<Napi::Number>().Int32Value());
  }
  return source;
}

std::optional<TensorSource> toOptionalTensor(const Napi::Object& owner, const char* name,
                                             const std::string& prefix) {
  if (isNull(owner, name)) return std::nullopt;
  return toTensor(owner.Get(name).As<Napi::Object>(), prefix + name);
}

// Null: no part.
TensorParts toTensorParts(const Napi::Object& owner, const char* name, const std::string& prefix) {
  TensorParts parts;
  if (isNull(owner, name)) return parts;
  forEachElement(owner, name,
                 [&](const Napi::Object& part) { parts.push_back(toTensor(part, prefix + name)); });
  return parts;
}

std::optional<RouterTensors> toRouter(const Napi::Object& owner, const std::string& prefix) {
  if (isNull(owner, "router")) return std::nullopt;
  const Napi::Object router = owner.Get("router").As<Napi::Object>();
  return RouterTensors{*toOptionalTensor(router, "weight", prefix + "router "),
                       *toOptionalTensor(router, "bias", prefix + "router ")};
}

LayerTensors toLayerTensors(const Napi::Object& object, int layer) {
  const std::string prefix = "layer " + std::to_string(layer) + " ";
  const auto optional = [&](const char* name) { return toOptionalTensor(object, name, prefix); };
  const auto parts = [&](const char* name) { return toTensorParts(object, name, prefix); };
  LayerTensors tensors;
  tensors.attentionNorm = *optional("attentionNorm");
  tensors.attentionNormBias = optional("attentionNormBias");
  tensors.qkvWeight = parts("qkvWeight");
  tensors.qkvBias = parts("qkvBias");
  tensors.queryNorm = optional("queryNorm");
  tensors.keyNorm = optional("keyNorm");
  tensors.attentionOut = parts("attentionOut");
  tensors.attentionOutBias = parts("attentionOutBias");
  tensors.attentionOutNorm = optional("attentionOutNorm");
  tensors.ffnNorm = *optional("ffnNorm");
  tensors.ffnNormBias = optional("ffnNormBias");
  tensors.ffnUp = parts("ffnUp");
  tensors.ffnUpBias = parts("ffnUpBias");
  tensors.ffnDown = parts("ffnDown");
  tensors.ffnDownBias = parts("ffnDownBias");
  tensors.ffnOutNorm = optional("ffnOutNorm");
  tensors.router = toRouter(object, prefix);
  forEachElement(object, "experts", [&](const Napi::Object& expert) {
    const std::string name = prefix + "expert " + std::to_string(tensors.experts.size()) + " ";
    tensors.experts.push_back({toTensorParts(expert, "up", name), toTensorParts(expert, "down", name)});
  });
  return tensors;
}

std::optional<PrefixTensors::Linear> toLinear(const Napi::Object& owner, const char* name) {
  if (isNull(owner, name)) return std::nullopt;
  const Napi::Object linear = owner.Get(name).As<Napi::Object>();
  const std::string prefix = std::string("prefix ") + name + " ";
  return PrefixTensors::Linear{*toOptionalTensor(linear, "weight", prefix),
                               *toOptionalTensor(linear, "bias", prefix)};
}

std::optional<PrefixTensors> toPrefix(const Napi::Object& owner) {
  if (isNull(owner, "prefix")) return std::nullopt;
  const Napi::Object object = owner.Get("prefix").As<Napi::Object>();
  return PrefixTensors{toInt(object, "length"), *toOptionalTensor(object, "embedding", "prefix "),
                       toLinear(object, "hidden"), toLinear(object, "out")};
}

SequenceRows toSequenceRows(const Napi::Object& object) {
  return {toInt(object, "rowCount"), toInt(object, "startPosition"), toInt(object, "contextLength"),
          toInt(object, "maskPosition"), toInts(object, "blockTable")};
}

// Null: none.
std::vector<uint8_t> toBytes(const Napi::Object& object, const char* name) {
  if (isNull(object, name)) return {};
  const Napi::Uint8Array bytes = object.Get(name).As<Napi::Uint8Array>();
  return {bytes.Data(), bytes.Data() + bytes.ElementLength()};
}

SliceInput toSliceInput(const Napi::Object& object) {
  SliceInput slice = {};
  slice.rows = toSequenceRows(object.Get("rows").As<Napi::Object>());
  slice.layerBegin = toInt(object, "layerBegin");
  slice.layerEnd = toInt(object, "layerEnd");
  if (!isNull(object, "tokenIds")) slice.tokenIds = toInts(object, "tokenIds");
  slice.activations = toBytes(object, "activations");
  return slice;
}

SampleRequest toSampleRequest(const Napi::Object& object) {
  SampleRequest request = {};
  request.row = toInt(object, "row");
  request.position = toUnsigned(object, "position");
  request.draft = toInts(object, "draft");
  request.temperature = toDouble(object, "temperature");
  request.topK = object.Get("topK").As<Napi::Number>().Int64Value();
  request.topP = toDouble(object, "topP");
  request.minP = toDouble(object, "minP");
  bool lossless = false;
  request.seed = object.Get("seed").As<Napi::BigInt>().Uint64Value(&lossless);
  request.bannedTokens = toInts(object, "bannedTokens");
  request.topLogprobs = toInt(object, "topLogprobs");
  return request;
}

ScoreRequest toScoreRequest(const Napi::Object& object) {
  return {toInt(object, "row"), toInt(object, "token"), toInt(object, "topLogprobs")};
}

Napi::Object fromTokenResult(Napi::Env env, const TokenResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("token", result.token);
  object.Set("logprob", result.logprob);
  object.Set("rank", static_cast<double>(result.rank));
  Napi::Int32Array topTokens = Napi::Int32Array::New(env, result.topTokens.size());
  Napi::Float32Array topLogprobs = Napi::Float32Array::New(env, result.topLogprobs.size());
  for (size_t i = 0; i < result.topTokens.size(); i++) {
    topTokens[i] = result.topTokens[i];
    topLogprobs[i] = result.topLogprobs[i];
  }
  object.Set("topTokens", topTokens);
  object.Set("topLogprobs", topLogprobs);
  object.Set("finite", result.finite);
  return object;
}

Napi::Array fromTokenResults(Napi::Env env, const std::vector<TokenResult>& results) {
  Napi::Array array = Napi::Array::New(env, results.size());
  for (uint32_t i = 0; i < results.size(); i++) array.Set(i, fromTokenResult(env, results[i]));
  return array;
}

// Hands the bytes to JavaScript without a copy: the vector lives until the array is collected. None: null.
Napi::Value fromBytes(Napi::Env env, std::vector<uint8_t> bytes) {
  if (bytes.empty()) return env.Null();
  auto* owner = new std::vector<uint8_t>(std::move(bytes));
  const Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(
      env, owner->data(), owner->size(),
      [](Napi::Env, void*, std::vector<uint8_t>* vector) { delete vector; }, owner);
  return Napi::Uint8Array::New(env, owner->size(), buffer, 0);
}

}  // namespace

std::optional<WeightCacheOptions> toWeightCacheOptions(const Napi::Value& value) {
  if (value.IsNull()) return std::nullopt;
  const Napi::Object object = value.As<Napi::Object>();
  return WeightCacheOptions{toString(object, "directory"), toUnsigned(object, "maxBytes"),
                            toString(object, "fingerprint")};
}

StageConfig toStageConfig(const Napi::Object& object) {
  StageConfig config = {};
  config.shape = toModelShape(object.Get("shape").As<Napi::Object>());
  config.layerBegin = toInt(object, "layerBegin");
  config.layerEnd = toInt(object, "layerEnd");
  int layer = config.layerBegin;
  forEachElement(object, "layers", [&](const Napi::Object& tensors) {
    config.layers.push_back(toLayerTensors(tensors, layer++));
  });
  config.embedding = toTensorParts(object, "embedding", "");
  config.positionEmbedding = toOptionalTensor(object, "positionEmbedding", "");
  config.blockPositionEmbedding = toOptionalTensor(object, "blockPositionEmbedding", "");
  config.finalNorm = toOptionalTensor(object, "finalNorm", "");
  config.finalNormBias = toOptionalTensor(object, "finalNormBias", "");
  config.head = toTensorParts(object, "head", "");
  config.prefix = toPrefix(object);
  config.weights = toWeightFormat(object, "weights");
  config.headWeights = toWeightFormat(object, "headWeights");
  config.dtype = toDType(toString(object, "dtype"));
  config.kvType = toKvType(toString(object, "kvType"));
  config.blockCount = toInt(object, "blockCount");
  config.blockSize = toInt(object, "blockSize");
  config.maxRows = toInt(object, "maxRows");
  config.contextRows = toInt(object, "contextRows");
  config.threads = toInt(object, "threads");
  if (object.Get("cpus").IsTypedArray()) config.cpus = toInts(object, "cpus");
  return config;
}

std::shared_ptr<StepInput> toStepInput(const Napi::Object& object) {
  auto input = std::make_shared<StepInput>();
  forEachElement(object, "copies", [&](const Napi::Object& copy) {
    input->copies.push_back({toInt(copy, "from"), toInt(copy, "to")});
  });
  if (!isNull(object, "slice")) input->slice = toSliceInput(object.Get("slice").As<Napi::Object>());
  input->rowCount = 0;
  forEachElement(object, "sequences", [&](const Napi::Object& rows) {
    input->sequences.push_back(toSequenceRows(rows));
    input->rowCount += input->sequences.back().rowCount;
  });
  if (!isNull(object, "tokenIds")) input->tokenIds = toInts(object, "tokenIds");
  input->activations = toBytes(object, "activations");
  forEachElement(object, "samples",
                 [&](const Napi::Object& request) { input->samples.push_back(toSampleRequest(request)); });
  forEachElement(object, "scores",
                 [&](const Napi::Object& request) { input->scores.push_back(toScoreRequest(request)); });
  return input;
}

Napi::Object fromStepOutput(Napi::Env env, StepOutput output) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("activations", fromBytes(env, std::move(output.activations)));
  object.Set("sliceActivations", fromBytes(env, std::move(output.sliceActivations)));
  object.Set("samples", fromTokenResults(env, output.samples));
  object.Set("scores", fromTokenResults(env, output.scores));
  object.Set("computeUs", output.computeUs);
  return object;
}

}  // namespace glm_relay
