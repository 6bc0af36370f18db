#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/canon_double.h"
#include "model/philox.h"

namespace glm_relay {

namespace {

struct RowMax {
  float max;
  bool finite;
};

// Sums and comparisons without branches, which the compiler does for many logits at once.
RowMax scan(const float* logits, int count) {
  float max = logits[0];
  int odd = 0;
  for (int i = 0; i < count; i++) {
    odd |= std::isfinite(logits[i]) ? 0 : 1;
    max = logits[i] > max ? logits[i] : max;
  }
  return {max, odd == 0};
}

// The order of candidates: higher logit first, ties to the lower id.
struct Before {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

}  // namespace

Sampler::Sampler(const KernelTable& kernels, int tokenCount, int threads)
    : kernels_(kernels), tokenCount_(tokenCount), scratch_(threads) {
  for (Scratch& scratch : scratch_) {
    scratch.candidates.reserve(tokenCount);
    scratch.weights.resize(tokenCount);
  }
}

uint64_t Sampler::scratchBytes() const {
  return scratch_.size() * static_cast<uint64_t>(tokenCount_) * (sizeof(int32_t) + sizeof(float));
}

TokenResult Sampler::sample(const float* logits, const SampleRequest& request, int draftIndex, int thread) {
  const RowMax row = scan(logits, tokenCount_);
  TokenResult result;
  result.finite = row.finite;
  result.logprob = std::numeric_limits<double>::quiet_NaN();
  if (!row.finite) return result;
  // The first of the largest, as `draw` would find among candidates.
  const bool isPlain = request.temperature == 0.0 && request.bannedTokens.empty();
  result.token = isPlain ? static_cast<int>(std::find(logits, logits + tokenCount_, row.max) - logits)
                         : draw(logits, request, request.position + draftIndex, scratch_[thread]);
  if (request.topLogprobs >= 0) explain(logits, request.topLogprobs, row.max, scratch_[thread], result);
  return result;
}

TokenResult Sampler::score(const float* logits, const ScoreRequest& request, int thread) {
  const RowMax row = scan(logits, tokenCount_);
  TokenResult result;
  result.finite = row.finite;
  result.token = request.token;
  result.logprob = std::numeric_limits<double>::quiet_NaN();
  if (row.finite) explain(logits, request.topLogprobs, row.max, scratch_[thread], result);
  return result;
}

// Logprob and rank of result.token, and the best alternatives, all under the raw logits.
void Sampler::explain(const float* logits, int topLogprobs, float max, Scratch& scratch,
                      TokenResult& result) const {
  const double logSum = canonLog64(kernels_.expSum(logits, tokenCount_, max));
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[id]) - max - logSum);
  };
  const Before before = {logits};
  result.logprob = logprob(result.token);
  result.rank = 1;
  for (int32_t id = 0; id < tokenCount_; id++) result.rank += before(id, result.token) ? 1 : 0;

  const int count = std::min(topLogprobs, tokenCount_);
  if (count <= 0) return;
  scratch.candidates.resize(tokenCount_);
  std::iota(scratch.candidates.begin(), scratch.candidates.end(), 0);
  std::partial_sort(scratch.candidates.begin(), scratch.candidates.begin() + count, scratch.candidates.end(),
                    before);
  for (int i = 0; i < count; i++) {
    result.topTokens.push_back(scratch.candidates[i]);
    result.topLogprobs.push_back(logprob(scratch.candidates[i]));
  }
}

// Banned ids, then temperature, top-k, min-p: leaves the candidates in ascending order of id, and
// weights[id] = exp((logit - max) / temperature) with the maximum over the ids that are not banned.
void Sampler::limitCandidates(const float* logits, const SampleRequest& request, Scratch& scratch) const {
  std::vector<int32_t>& candidates = scratch.candidates;
  const float* weights = scratch.weights.data();
  float max = -std::numeric_limits<float>::infinity();
  for (const int32_t id : candidates) max = std::max(max, logits[id]);
  kernels_.expWeights(scratch.weights.data(), logits, tokenCount_, max,
                      static_cast<float>(request.temperature));

  if (request.topK > 0 && request.topK < static_cast<int64_t>(candidates.size())) {
    std::nth_element(candidates.begin(), candidates.begin() + (request.topK - 1), candidates.end(),
                     Before{logits});
    candidates.resize(request.topK);
    std::sort(candidates.begin(), candidates.end());
  }
  if (request.minP > 0.0) {
    // The largest weight is exactly 1, so at least one candidate stays.
    const auto tooSmall = [&](int32_t id) { return weights[id] < request.minP; };
    candidates.erase(std::remove_if(candidates.begin(), candidates.end(), tooSmall), candidates.end());
  }
}

int Sampler::draw(const float* logits, const SampleRequest& request, uint64_t position,
                  Scratch& scratch) const {
  std::vector<int32_t> banned = request.bannedTokens;
  std::sort(banned.begin(), banned.end());
  std::vector<int32_t>& candidates = scratch.candidates;
  candidates.clear();
  for (int32_t id = 0; id < tokenCount_; id++) {
    if (!std::binary_search(banned.begin(), banned.end(), id)) candidates.push_back(id);
  }
  if (request.temperature == 0.0) {
    return *std::min_element(candidates.begin(), candidates.end(), Before{logits});
  }
  limitCandidates(logits, request, scratch);

  // Inverse of the distribution function over the candidates in order. The total is summed by
  // ascending id; the walk takes candidates from a heap, since it rarely needs more than a few.
  double total = 0.0;
  for (const int32_t id : candidates) total += scratch.weights[id];
  const double uniform = uniformAt(request.seed, position);
  const bool truncated = request.topP < 1.0;
  const double limit = (truncated ? request.topP : uniform) * total;

  // A heap's front is its largest element: the one that comes before all others.
  const Before before = {logits};
  const auto after = [&](int32_t a, int32_t b) { return before(b, a); };
  std::make_heap(candidates.begin(), candidates.end(), after);
  auto heapEnd = candidates.end();
  double sum = 0.0;
  while (heapEnd != candidates.begin()) {
    std::pop_heap(candidates.begin(), heapEnd, after);
    --heapEnd;
    sum += scratch.weights[*heapEnd];
    if (truncated ? sum >= limit : sum > limit) break;
  }
  // Popped candidates stand behind the heap, last one first. Rounding may let the walk reach the end.
  if (!truncated) return *heapEnd;

  // Top-p keeps the shortest beginning that reaches its share; the draw is among what it kept.
  const double target = uniform * sum;
  double walked = 0.0;
  for (auto kept = candidates.end(); kept != heapEnd;) {
    --kept;
    walked += scratch.weights[*kept];
    if (walked > target) return *kept;
  }
  return *heapEnd;
}

}  // namespace glm_relay
