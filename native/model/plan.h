// Plain structs with the names and the order of ../index.ts. What arrives here has been validated
// at the door; everything below trusts it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace glm_relay {

struct ModelShape {
  int hiddenSize;
  int layerCount;
  int headCount;
  int kvHeadCount;
  int headDim;
  int ffnSize;
  int vocabSize;
  int tokenCount;
  int ropeDim;
  double ropeBase;
  double ropePositionDivisor;
  double normEps;
  int maxPositions;

  int queryColumns() const { return headCount * headDim; }
  int kvColumns() const { return kvHeadCount * headDim; }
  int qkvColumns() const { return queryColumns() + 2 * kvColumns(); }
};

struct TensorSource {
  std::string role;  // for error messages: "layer 3 ffnDown"
  std::string file;
  uint64_t byteOffset;
  uint64_t byteLength;
  DType dtype;
  std::vector<int> shape;
};

// A matrix or vector whose rows are those of one tensor, or of several, one below the other.
using TensorParts = std::vector<TensorSource>;

struct LayerTensors {
  TensorSource attentionNorm;
  TensorParts qkvWeight;
  TensorParts qkvBias;  // empty: none
  TensorSource attentionOut;
  std::optional<TensorSource> attentionOutNorm;
  TensorSource ffnNorm;
  TensorParts ffnGateUp;
  TensorSource ffnDown;
  std::optional<TensorSource> ffnOutNorm;
};

struct StageConfig {
  ModelShape shape;
  int layerBegin;
  int layerEnd;
  std::vector<LayerTensors> layers;
  std::optional<TensorSource> embedding;
  std::optional<TensorSource> finalNorm;
  std::optional<TensorSource> head;
  WeightFormat weights;      // of the matrices of all layers
  WeightFormat headWeights;  // of the head
  DType dtype;
  KvType kvType;
  int blockCount;
  int blockSize;
  int maxRows;
  int threads;
};

// What a backend must know to lay out the KV cache and to run attention over it.
struct KvPlan {
  KvType type;
  int layerCount;
  int blockCount;
  int tilesPerBlock;
  int headCount;
  int kvHeadCount;
  int headDim;
  int ropeDim;

  uint64_t tileBytes() const { return kvTileBytes(type, headDim); }
  // Keys, or values, of one layer: [block][tile][KV head][one tile].
  uint64_t layerBytes() const {
    return static_cast<uint64_t>(blockCount) * tilesPerBlock * kvHeadCount * tileBytes();
  }
};

struct SequenceRows {
  int rowCount;
  int startPosition;
  std::vector<int32_t> blockTable;
};

struct SampleRequest {
  int row;
  uint64_t position;
  double temperature;
  int64_t topK;
  double topP;
  double minP;
  uint64_t seed;
  std::vector<int32_t> bannedTokens;
  int topLogprobs;
};

struct ScoreRequest {
  int row;
  int token;
  int topLogprobs;
};

struct TokenResult {
  int token = 0;
  double logprob = 0.0;
  int64_t rank = 0;
  std::vector<int32_t> topTokens;
  std::vector<float> topLogprobs;
  bool finite = false;
};

struct StepInput {
  int rowCount;
  std::vector<SequenceRows> sequences;
  std::vector<int32_t> tokenIds;
  std::vector<uint8_t> activations;
  std::vector<SampleRequest> samples;
  std::vector<ScoreRequest> scores;
};

struct StepOutput {
  std::vector<uint8_t> activations;  // empty on the last stage
  std::vector<TokenResult> samples;
  std::vector<TokenResult> scores;
  double computeUs = 0.0;
};

}  // namespace glm_relay
