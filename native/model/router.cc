#include "model/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/canon_math.h"

namespace glm_relay {

namespace {

// Of what is chosen already or may not be; every score is above it, so nothing is chosen twice.
constexpr float kOut = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

// A NaN is chosen only where there is nothing else; the row's weights are NaN then.
float scoreOf(float sigmoid, float bias) {
  const float score = sigmoid + bias;
  return std::isnan(score) ? kLowest : score;
}

// The lowest index of the largest value.
int indexOfLargest(const float* values, int count) {
  int best = 0;
  for (int i = 1; i < count; i++) {
    if (values[i] > values[best]) best = i;
  }
  return best;
}

// Experts outside the best groups are never chosen. A group is as good as its two best
// experts together, or as its only one.
void maskGroups(float* scores, const ExpertShape& shape, float* groupScores) {
  const int size = shape.count / shape.groups;
  for (int group = 0; group < shape.groups; group++) {
    const float* members = scores + group * size;
    const int first = indexOfLargest(members, size);
    float second = kOut;
    for (int i = 0; i < size; i++) {
      if (i != first && members[i] > second) second = members[i];
    }
    groupScores[group] = size == 1 ? members[first] : std::max(kLowest, members[first] + second);
  }
  uint64_t kept = 0;
  for (int i = 0; i < shape.groupsPerToken; i++) {
    const int best = indexOfLargest(groupScores, shape.groups);
    groupScores[best] = kOut;
    kept |= uint64_t{1} << best;
  }
  for (int group = 0; group < shape.groups; group++) {
    if ((kept >> group & 1) != 0) continue;
    std::fill(scores + group * size, scores + (group + 1) * size, kOut);
  }
}

}  // namespace

void chooseExperts(ChosenExpert* chosen, const float* logits, const float* bias, const ExpertShape& shape,
                   float* scratch) {
  float* scores = scratch;
  for (int i = 0; i < shape.count; i++) scores[i] = scoreOf(canonSigmoid<ScalarLanes>(logits[i]), bias[i]);
  if (shape.groupsPerToken < shape.groups) maskGroups(scores, shape, scratch + shape.count);

  float sum = 0.0f;
  for (int rank = 0; rank < shape.perToken; rank++) {
    const int expert = indexOfLargest(scores, shape.count);
    const float weight = canonSigmoid<ScalarLanes>(logits[expert]);
    chosen[rank] = {expert, weight};
    sum = sum + weight;
    scores[expert] = kOut;
  }
  const float scale = static_cast<float>(shape.scale);
  for (int rank = 0; rank < shape.perToken; rank++) {
    float& weight = chosen[rank].weight;
    if (shape.normalizeWeights) weight = weight / (sum + 1e-20f);
    weight = weight * scale;
  }
}

}  // namespace glm_relay
