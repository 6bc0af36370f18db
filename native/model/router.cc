#include "model/router.h"

#include <algorithm>
#include <limits>

#include "kernels/canon_math.h"

namespace glm_relay {

namespace {

// The lowest index of the largest value. A NaN counts only where there is nothing else.
int indexOfLargest(const float* values, int count) {
  int best = 0;
  for (int i = 1; i < count; i++) {
    if (values[i] > values[best] || std::isnan(values[best])) best = i;
  }
  return best;
}

// Experts outside the best groups are never chosen. A group is as good as its two best
// experts together.
void maskGroups(float* scores, const ExpertShape& shape, float* groupScores) {
  const int size = shape.count / shape.groups;
  for (int group = 0; group < shape.groups; group++) {
    const float* members = scores + group * size;
    const int first = indexOfLargest(members, size);
    float second = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < size; i++) {
      if (i != first && members[i] > second) second = members[i];
    }
    groupScores[group] = members[first] + second;
  }
  uint64_t kept = 0;
  for (int i = 0; i < shape.groupsPerToken; i++) {
    const int best = indexOfLargest(groupScores, shape.groups);
    groupScores[best] = -std::numeric_limits<float>::infinity();
    kept |= uint64_t{1} << best;
  }
  for (int group = 0; group < shape.groups; group++) {
    if ((kept >> group & 1) != 0) continue;
    std::fill(scores + group * size, scores + (group + 1) * size, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace

void chooseExperts(ChosenExpert* chosen, const float* logits, const float* bias, const ExpertShape& shape,
                   float* scratch) {
  float* scores = scratch;
  for (int i = 0; i < shape.count; i++) scores[i] = canonSigmoid<ScalarLanes>(logits[i]) + bias[i];
  if (shape.groupsPerToken < shape.groups) maskGroups(scores, shape, scratch + shape.count);

  float sum = 0.0f;
  for (int rank = 0; rank < shape.perToken; rank++) {
    const int expert = indexOfLargest(scores, shape.count);
    const float weight = canonSigmoid<ScalarLanes>(logits[expert]);
    chosen[rank] = {expert, weight};
    sum = sum + weight;
    scores[expert] = -std::numeric_limits<float>::infinity();
  }
  const float scale = static_cast<float>(shape.scale);
  for (int rank = 0; rank < shape.perToken; rank++) {
    float& weight = chosen[rank].weight;
    if (shape.normalizeWeights) weight = weight / (sum + 1e-20f);
    weight = weight * scale;
  }
}

}  // namespace glm_relay
