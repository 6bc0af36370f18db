// Plain structs with the names and the order of ../index.ts. What arrives here has been validated
// at the door; everything below trusts it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace glm_relay {

enum class NormKind : uint8_t { kRms, kLayer };
enum class FfnKind : uint8_t { kGatedSilu, kGelu, kGatedGelu };

// How the layers of a family compute; see LayerForm of ../index.ts.
struct LayerForm {
  NormKind norm = NormKind::kRms;
  // What attention or the feed-forward part gives is added to its normed input times residualScale, not to
  // the residual stream as it came.
  bool normedResidual = false;
  double residualScale = 1.0;
  // Pairs (j, width / 2 + j) are rotated instead of (2j, 2j + 1).
  bool ropeHalves = false;
  // 2: one half of the rotated dimensions turns with the position, the other with the block position.
  int ropeAxes = 1;
  FfnKind ffn = FfnKind::kGatedSilu;

  // Rows of the matrix in front of the activation per column behind it.
  int ffnInputs() const { return ffn == FfnKind::kGelu ? 1 : 2; }
};

// The mixture of experts in layers that have one; count 0: no layer has.
struct ExpertShape {
  int count = 0;
  int perToken = 0;
  // Experts are chosen within the best `groupsPerToken` of `groups` (at most 64) equal groups.
  int groups = 1;
  int groupsPerToken = 1;
  int ffnSize = 0;
  // Of the expert that every row passes through.
  int sharedFfnSize = 0;
  bool normalizeWeights = false;
  double scale = 1.0;
};

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
  LayerForm form;
  ExpertShape experts;

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

// A matrix or vector made of one tensor or of several: one below the other, or, when each has all rows,
// side by side.
using TensorParts = std::vector<TensorSource>;

struct ExpertTensors {
  TensorParts up;
  TensorParts down;
};

struct RouterTensors {
  TensorSource weight;
  TensorSource bias;
};

// An empty list, or no value: the family has no such tensor.
struct LayerTensors {
  TensorSource attentionNorm;
  std::optional<TensorSource> attentionNormBias;
  TensorParts qkvWeight;
  TensorParts qkvBias;
  std::optional<TensorSource> queryNorm;
  std::optional<TensorSource> keyNorm;
  TensorParts attentionOut;
  TensorParts attentionOutBias;
  std::optional<TensorSource> attentionOutNorm;
  TensorSource ffnNorm;
  std::optional<TensorSource> ffnNormBias;
  // Of a layer with experts: those of the shared one.
  TensorParts ffnUp;
  TensorParts ffnUpBias;
  TensorParts ffnDown;
  TensorParts ffnDownBias;
  std::optional<TensorSource> ffnOutNorm;
  std::optional<RouterTensors> router;
  std::vector<ExpertTensors> experts;
};

// A P-Tuning v2 prefix encoder: rows of embedding, optionally through tanh(W x + b) and W x + b, are keys
// and values of all layers: [length, 2 * layers * kvColumns], key and value of one layer after the other.
struct PrefixTensors {
  int length;
  TensorSource embedding;
  struct Linear {
    TensorSource weight;
    TensorSource bias;
  };
  std::optional<Linear> hidden;
  std::optional<Linear> out;
};

struct StageConfig {
  ModelShape shape;
  int layerBegin;
  int layerEnd;
  std::vector<LayerTensors> layers;
  TensorParts embedding;  // empty: not the first stage
  // Learned tables, added to the embedding: by position and by block position.
  std::optional<TensorSource> positionEmbedding;
  std::optional<TensorSource> blockPositionEmbedding;
  std::optional<TensorSource> finalNorm;
  std::optional<TensorSource> finalNormBias;
  TensorParts head;  // empty: not the last stage
  std::optional<PrefixTensors> prefix;
  WeightFormat weights;      // of the matrices of all layers
  WeightFormat headWeights;  // of the head
  DType dtype;
  KvType kvType;
  int blockCount;
  int blockSize;
  int maxRows;
  // Rows of the longest context that slices read; 0: there are no slices.
  int contextRows;
  int threads;
  // The processor that each thread stays on; empty: the system moves them.
  std::vector<int32_t> cpus;
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
  bool ropeHalves;
  int ropeAxes;
  // Slots in front of every sequence that hold a prefix encoder's keys and values.
  int prefixLength;

  int kvColumns() const { return kvHeadCount * headDim; }
  uint64_t tileBytes() const { return kvTileBytes(type, headDim); }
  // Keys, or values, of one block in one layer: [tile][KV head][one tile].
  uint64_t blockBytes() const { return static_cast<uint64_t>(tilesPerBlock) * kvHeadCount * tileBytes(); }
  uint64_t layerBytes() const { return blockCount * blockBytes(); }
};

struct SequenceRows {
  int rowCount;
  int startPosition;
  // Rows before it see all of each other (prefix-LM); 0: none do.
  int contextLength;
  // What stands for the position of every row from contextLength on; -1: positions go on.
  int maskPosition;
  std::vector<int32_t> blockTable;
};

struct SampleRequest {
  int row;
  uint64_t position;
  // Tokens of the rows behind `row`: each is drawn from as well while all before it were drawn as here.
  std::vector<int32_t> draft;
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

// Layers [layerBegin, layerEnd) of the model for all rows of one context. Between its slices the stage keeps
// the rows' residual stream ("parked"); no layers at all: the rows only arrive.
struct SliceInput {
  SequenceRows rows;
  int layerBegin;
  int layerEnd;
  // Of a context that is new to the stage one of them; else the parked rows go on.
  std::vector<int32_t> tokenIds;
  std::vector<uint8_t> activations;
};

// Block `to` begins with what `from` holds: two sequences that begin alike go on differently.
struct BlockCopy {
  int from;
  int to;
};

struct StepInput {
  // In front of everything else.
  std::vector<BlockCopy> copies;
  // Computed in front of the step's rows, which may read what it stores.
  std::optional<SliceInput> slice;
  int rowCount;
  std::vector<SequenceRows> sequences;
  std::vector<int32_t> tokenIds;
  std::vector<uint8_t> activations;
  std::vector<SampleRequest> samples;
  std::vector<ScoreRequest> scores;
};

struct StepOutput {
  std::vector<uint8_t> activations;       // empty on the last stage
  std::vector<uint8_t> sliceActivations;  // of a slice that ends with the stage's last layer; else empty
  std::vector<TokenResult> samples;
  std::vector<TokenResult> scores;
  double computeUs = 0.0;
};

}  // namespace glm_relay
