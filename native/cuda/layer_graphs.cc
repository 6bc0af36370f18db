#include "cuda/layer_graphs.h"

#include <algorithm>

namespace glm_relay::cuda {

namespace {

// Numbers of rows times lengths of contexts, in powers of two of parts, that a busy worker meets.
constexpr size_t kMaxGraphs = 128;

}  // namespace

LayerGraphs::~LayerGraphs() {
  for (const Kept& kept : kept_) {
    if (kept.graph != nullptr) cudaGraphExecDestroy(kept.graph);
  }
}

// The oldest makes room for a new one.
LayerGraphs::Kept& LayerGraphs::find(const LayerGraphKey& key) {
  for (Kept& kept : kept_) {
    if (kept.key == key) return kept;
  }
  if (kept_.size() < kMaxGraphs) {
    kept_.reserve(kMaxGraphs);
    kept_.push_back({key});
    return kept_.back();
  }
  Kept& oldest = *std::min_element(kept_.begin(), kept_.end(),
                                   [](const Kept& a, const Kept& b) { return a.lastUse < b.lastUse; });
  if (oldest.graph != nullptr) check(cudaGraphExecDestroy(oldest.graph), "forgetting a graph");
  oldest = {key};
  return oldest;
}

bool LayerGraphs::begin(const LayerGraphKey& key, cudaStream_t stream) {
  Kept& kept = find(key);
  const bool seen = kept.lastUse > 0;
  kept.lastUse = ++uses_;
  if (kept.graph != nullptr) {
    check(cudaGraphLaunch(kept.graph, stream), "starting a graph");
    return false;
  }
  if (seen) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "keeping a step's kernels");
    keeping_ = &kept;
  }
  return true;
}

void LayerGraphs::end(cudaStream_t stream) {
  if (keeping_ == nullptr) return;
  Kept& kept = *keeping_;
  keeping_ = nullptr;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "keeping a step's kernels");
  const cudaError_t made = cudaGraphInstantiate(&kept.graph, graph, 0);
  cudaGraphDestroy(graph);
  if (made != cudaSuccess) kept.graph = nullptr;
  check(made, "making a graph of a step's kernels");
  check(cudaGraphLaunch(kept.graph, stream), "starting a graph");
}

void LayerGraphs::abandon(cudaStream_t stream) {
  if (keeping_ == nullptr) return;
  keeping_ = nullptr;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

}  // namespace glm_relay::cuda
