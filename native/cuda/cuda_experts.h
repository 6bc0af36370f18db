// Memory for mixtures of experts (kernels/experts.h, which says what a slot is).
#pragma once

#include "cuda/device_memory.h"
#include "cuda/kernels/experts.h"
#include "model/router.h"

namespace glm_relay::cuda {

struct ExpertMemory {
  ExpertShape shape = {};
  int hiddenSize = 0;

  DeviceMemory logits;      // [rows, experts]
  DeviceMemory chosen;      // [rows, perToken]: ChosenExpert
  DeviceMemory partOfRow;   // [rows, perToken]: ExpertPart
  DeviceMemory rowOfSlot;   // [slots]
  DeviceMemory tiles;       // ExpertTile
  DeviceMemory halves;      // [slots, hidden], then [slots, ffn]: HalfRows
  DeviceMemory halfScales;  // [slots]
  DeviceMemory up;          // [slots, 2 * ffn]
  DeviceMemory parts;       // [slots, hidden]

  void reserve(const ExpertShape& expertShape, int hidden, int rows, cudaStream_t stream);
  uint64_t bytes() const;
};

}  // namespace glm_relay::cuda
