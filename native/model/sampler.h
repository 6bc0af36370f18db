// Draws tokens from logits and scores known ones. Depends on nothing but its arguments: the same
// logits, parameters, seed and position give the same token, in any batch, on any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "model/plan.h"

namespace glm_relay {

class Sampler {
 public:
  // Scratch memory for calls from threads [0, threads).
  Sampler(const KernelTable& kernels, int tokenCount, int threads);

  // logits: tokenCount values. Ids >= tokenCount do not exist here: the head has no rows for them.
  // draftIndex: how many tokens of the request were drawn before this one; the position goes on by as many.
  TokenResult sample(const float* logits, const SampleRequest& request, int draftIndex, int thread);
  TokenResult score(const float* logits, const ScoreRequest& request, int thread);

  uint64_t scratchBytes() const;

 private:
  struct Scratch {
    std::vector<int32_t> candidates;
    std::vector<float> weights;
  };
  int draw(const float* logits, const SampleRequest& request, uint64_t position, Scratch& scratch) const;
  void limitCandidates(const float* logits, const SampleRequest& request, Scratch& scratch) const;
  void explain(const float* logits, int topLogprobs, float max, Scratch& scratch, TokenResult& result) const;

  const KernelTable& kernels_;
  const int tokenCount_;
  std::vector<Scratch> scratch_;
};

}  // namespace glm_relay
