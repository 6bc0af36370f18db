// Rows and logits on their way between the memory of callers and the GPU, through page-locked memory: copies
// from and to any other memory make the host wait for each of them.
#pragma once

#include <vector>

#include "cuda/device_memory.h"

namespace glm_relay::cuda {

class HostTransfers {
 public:
  // Room for so many bytes each way in one step; what finds none is copied directly.
  void reserve(uint64_t bytes);

  // `from` is read before this returns.
  void in(void* to, const void* from, uint64_t bytes, cudaStream_t stream);
  // `to` is written by finish(), or before this returns.
  void out(void* to, const void* from, uint64_t bytes, cudaStream_t stream);
  // Everything that the stream was given has run: what was to come out is handed over.
  void finish();

 private:
  // A piece of page-locked memory, or null.
  static uint8_t* take(const PinnedMemory& memory, uint64_t& used, uint64_t bytes);

  struct Arriving {
    void* to;
    const uint8_t* from;
    uint64_t bytes;
  };
  PinnedMemory in_;
  PinnedMemory out_;
  uint64_t usedIn_ = 0;
  uint64_t usedOut_ = 0;
  std::vector<Arriving> arriving_;
};

}  // namespace glm_relay::cuda
