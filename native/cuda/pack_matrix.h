// Brings weights into the layout of a GPU (weight_layout.h), on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"
#include "cuda/weight_layout.h"
#include "model/thread_pool.h"

namespace glm_relay::cuda {

struct PackedWeights {
  std::vector<uint8_t> blocks;   // WeightLayout::bytes()
  std::vector<float> rowScales;  // [n], powers of two
  RoundingError rounding;
};

// Rounds the weights exactly as the CPU does (CANON.md), or to FP16 where they stay as stored.
// Throws WeightError for weights that cannot be used.
PackedWeights packMatrix(const HostMatrix& matrix, const KernelTable& kernels, ThreadPool& pool);
// The same from the strips that a CPU has made of them (quant/format.h, kernels.h).
PackedWeights packStrips(const PackedBytes& matrix, const KernelTable& kernels, ThreadPool& pool);

}  // namespace glm_relay::cuda
