// A P-Tuning v2 prefix encoder, computed once when a stage is loaded: what it gives is keys and values of
// positions in front of every sequence, which are stored as they are, without rotation.
#pragma once

#include "model/weights.h"

namespace glm_relay {

// Fills LayerWeights::prefix of the stage's layers. Throws as TensorLoader does.
void loadPrefix(const StageConfig& config, const KernelTable& kernels, Backend& backend, TensorLoader& load,
                StageWeights& weights);

}  // namespace glm_relay
