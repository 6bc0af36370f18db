// Which experts a row passes through, and with which weights (CANON.md, Experts).
#pragma once

#include "model/plan.h"

namespace glm_relay {

struct ChosenExpert {
  int expert;
  float weight;
};

// Chooses shape.perToken experts by the router's logits of one row, [count]; the first is the best.
// `bias` counts for the choice alone. `scratch` holds 2 * count floats.
void chooseExperts(ChosenExpert* chosen, const float* logits, const float* bias, const ExpertShape& shape,
                   float* scratch);

}  // namespace glm_relay
