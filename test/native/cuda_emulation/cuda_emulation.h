// What the kernels and the backend of native/cuda/ need of CUDA, for a host without it. Kernels are compiled
// by the host's compiler and run by block.h; memory of the device is the host's, begins as NaN and ends at a
// page that nobody may touch; work that a stream is given runs when somebody waits for it.
//
// Compiled and emulated code shows that results are right. It shows nothing about speed, nothing about how
// tensor cores round, and only orders of threads that its switches can make.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "block.h"
#include "kernels/half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

using dim3 = glm_relay::emulation::Index;
#define threadIdx (glm_relay::emulation::thread->threadIndex)
#define blockIdx (glm_relay::emulation::thread->blockIndex)
#define blockDim (glm_relay::emulation::thread->blockSize)
#define gridDim (glm_relay::emulation::thread->gridSize)
#define __syncthreads() glm_relay::emulation::blockBarrier(__FILE__, __LINE__)
#define __syncwarp() glm_relay::emulation::warpBarrier(__FILE__, __LINE__)

// 16 and 8 bytes, as one access of a GPU.
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

inline uint32_t __float_as_uint(float x) { return glm_relay::floatBits(x); }
inline float __uint_as_float(uint32_t bits) { return glm_relay::bitsFloat(bits); }
// Byte i of the result is the byte of b | a that nibble i of the selector names.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) {
    const uint32_t from = selector >> (4 * i) & 7u;
    result |= static_cast<uint32_t>(bytes >> (8 * from) & 0xffu) << (8 * i);
  }
  return result;
}

inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
// Threads change at barriers and operations of a warp alone, so nothing comes between.
inline uint32_t atomicOr(uint32_t* to, uint32_t bits) {
  const uint32_t before = *to;
  *to |= bits;
  return before;
}

// Every lane gets the value of lane ^ mask.
template <class Value>
Value __shfl_xor_sync(uint32_t, Value value, int mask) {
  struct Brought {
    Value value;
    int mask;
    Value result;
  } mine = {value, mask, value};
  glm_relay::emulation::warpOperation(
      [](void** ofLane) {
        for (int lane = 0; lane < glm_relay::emulation::kWarpSize; lane++) {
          auto* to = static_cast<Brought*>(ofLane[lane]);
          to->result = static_cast<Brought*>(ofLane[lane ^ to->mask])->value;
        }
      },
      &mine);
  return mine.result;
}

// Every lane gets the value of a lane.
template <class Value>
Value __shfl_sync(uint32_t, Value value, int from) {
  struct Brought {
    Value value;
    int from;
    Value result;
  } mine = {value, from, value};
  glm_relay::emulation::warpOperation(
      [](void** ofLane) {
        for (int lane = 0; lane < glm_relay::emulation::kWarpSize; lane++) {
          auto* to = static_cast<Brought*>(ofLane[lane]);
          to->result = static_cast<Brought*>(ofLane[to->from & 31])->value;
        }
      },
      &mine);
  return mine.result;
}

// Every lane gets whether one of them brought a value that is not 0.
inline int __any_sync(uint32_t, int value) {
  struct Brought {
    int value;
  } mine = {value};
  glm_relay::emulation::warpOperation(
      [](void** ofLane) {
        int any = 0;
        for (int lane = 0; lane < glm_relay::emulation::kWarpSize; lane++) {
          if (static_cast<Brought*>(ofLane[lane])->value != 0) any = 1;
        }
        for (int lane = 0; lane < glm_relay::emulation::kWarpSize; lane++) {
          static_cast<Brought*>(ofLane[lane])->value = any;
        }
      },
      &mine);
  return mine.value;
}

// The part of CUDA's runtime that the backend uses, with CUDA's names and meaning.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum {
  cudaStreamNonBlocking = 1,
  cudaEventDisableTiming = 2,
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major;
  int minor;
  size_t sharedMemPerBlockOptin;
};
struct EmulatedStream;
using cudaStream_t = EmulatedStream*;
struct EmulatedEvent;
using cudaEvent_t = EmulatedEvent*;

struct EmulatedGraph;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = EmulatedGraph*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* available, size_t* total);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
// Copies from and to memory of cudaMallocHost happen when the stream gets to them. Other memory of the host
// is read before this returns, and written after everything before it has run.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
// What a stream is given between begin and end is kept and does not run; waiting for it is an error.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);

namespace glm_relay::emulation {

// Gives a stream a grid to run.
void enqueueGrid(cudaStream_t stream, Index grid, Index block, size_t sharedBytes,
                 std::function<void()> kernel);
void checkSharedLimit(size_t bytes);

}  // namespace glm_relay::emulation

struct cudaFuncAttributes {
  int ptxVersion;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  *attributes = {};
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, int, int bytes) {
  glm_relay::emulation::checkSharedLimit(static_cast<size_t>(bytes));
  return cudaSuccess;
}
