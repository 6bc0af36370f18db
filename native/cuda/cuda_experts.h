// Memory for mixtures of experts: rows are grouped by expert on the host, which chooses by the router's
// logits.
#pragma once

#include <vector>

#include "cuda/device_memory.h"
#include "cuda/kernels/kernels.h"
#include "model/router.h"

namespace glm_relay::cuda {

struct ExpertMemory {
  ExpertShape shape = {};
  int hiddenSize = 0;

  DeviceMemory lowHalves;  // what FP16 leaves of the router's input, as FP16
  DeviceMemory logits;     // [rows, experts]
  DeviceMemory lowLogits;  // of lowHalves
  DeviceMemory rowOfPart;  // [rows * perToken]
  DeviceMemory partOfRow;  // [rows, perToken]: ExpertPart
  DeviceMemory gathered;   // [rows * perToken, hidden], grouped by expert
  DeviceMemory up;         // [rows, 2 * ffn]
  DeviceMemory gated;      // [rows, ffn]
  DeviceMemory parts;      // [rows * perToken, hidden], grouped by expert

  std::vector<float> hostLogits;
  std::vector<float> hostBias;
  std::vector<float> scores;         // [threads, 2 * experts]
  std::vector<ChosenExpert> chosen;  // [rows, perToken]
  std::vector<int32_t> hostRows;
  std::vector<ExpertPart> hostParts;

  void reserve(const ExpertShape& expertShape, int hidden, int rows, int threads, cudaStream_t stream);
  uint64_t bytes() const;
};

}  // namespace glm_relay::cuda
