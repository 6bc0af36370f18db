// The kernels as the backend calls them: each enqueues its work and returns. A row's result is a function of
// that row, the weights and the cache: never of how many rows there are, or of which other ones.
//
// All pointers are memory of the device; float rows lie one behind the other.
#pragma once

#include <cstdint>

#ifdef GLM_RELAY_CUDA
#include <cuda_runtime.h>
#else
#include "cuda_emulation.h"
#endif

#include "kernels/kernels.h"

namespace glm_relay::cuda {

// Whether a kernel is started so that it may begin before the one in front of it has ended (device.h): only
// where its code waits for that one, which is code of compute capability 9.0 and later.
inline bool kernelsBeginEarly = false;
// Looks which code the GPU runs; once per process, whose GPUs are of one compute capability.
void prepareLaunches();

// Which instructions the kernels use. kTuring's run on every GPU from sm_75 on, kAmpere's from sm_80 on.
enum class Path : uint8_t { kTuring, kAmpere };

// Between float32 and the type.
void widen(cudaStream_t stream, float* out, const void* in, int64_t count, DType dtype);
void narrow(cudaStream_t stream, void* out, const float* in, int64_t count, DType dtype);
// y[i] = x[rows[i]]
void gatherRows(cudaStream_t stream, float* y, const float* x, const int32_t* rows, int count, int size);

// A row's result of one of its experts: where it lies, and how much it counts.
struct ExpertPart {
  int32_t slot;
  float weight;
};
// y[r] = sum over rank of chosen[r, rank].weight * parts[chosen[r, rank].slot], ranks ascending
void mixParts(cudaStream_t stream, float* y, const float* parts, const ExpertPart* chosen, int rows,
              int perToken, int size);

}  // namespace glm_relay::cuda
