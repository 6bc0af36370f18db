// Memory for mixtures of experts (kernels/experts.h). A slot is a row beside others of one of its experts.
#pragma once

#include "cuda/device_memory.h"
#include "cuda/kernels/experts.h"
#include "model/router.h"

namespace glm_relay::cuda {

struct ExpertMemory {
  ExpertShape shape = {};
  int hiddenSize = 0;

  DeviceMemory logits;       // [rows, experts]
  DeviceMemory chosen;       // [rows, perToken]: ChosenExpert
  DeviceMemory partOfRow;    // [rows, perToken]: ExpertPart
  DeviceMemory rowOfSlot;    // [slots]
  DeviceMemory tiles;        // ExpertTile
  DeviceMemory up;           // [slots, 2 * ffn]
  DeviceMemory gated;        // [slots, columns of the layout of down]: FP16
  DeviceMemory gatedScales;  // [slots]
  DeviceMemory parts;        // [slots, hidden]

  void reserve(const ExpertShape& expertShape, int hidden, int rows, cudaStream_t stream);
  uint64_t bytes() const;
};

}  // namespace glm_relay::cuda
