// What the kernels of attention share: which heads a block of threads has, and how parts of the keys are put
// together.
#pragma once

#include "cuda/kernels/attention.h"
#include "cuda/kernels/cache_slot.h"
#include "cuda/kernels/device.h"

namespace glm_relay::cuda {

constexpr int kCacheTile = 16;
constexpr float kLog2E = 1.44269504f;

__device__ __forceinline__ float minusInfinity() { return __uint_as_float(0xff800000u); }

// Blocks are [heads, task, part]: the tasks behind each other begin in order, whatever the head.
//
// The heads that a block computes for the rows of its task: blockIdx.x counts the KV heads and, where a KV
// head has more than kTaskQueries heads, chunks of them.
struct BlockHeads {
  int kvHead;
  int first;
  int count;

  __device__ __forceinline__ explicit BlockHeads(const CacheView& cache) {
    const int group = cache.headCount / cache.kvHeadCount;
    const int most = group < kTaskQueries ? group : kTaskQueries;
    const int chunks = (group + most - 1) / most;
    const int chunk = static_cast<int>(blockIdx.x) % chunks;
    kvHead = static_cast<int>(blockIdx.x) / chunks;
    first = kvHead * group + chunk * most;
    count = group - chunk * most < most ? group - chunk * most : most;
  }
};
inline dim3 attentionGrid(const AttentionArgs& args) {
  const int group = args.cache.headCount / args.cache.kvHeadCount;
  const int chunks = (group + kTaskQueries - 1) / kTaskQueries;
  return dim3{static_cast<unsigned int>(args.cache.kvHeadCount * chunks),
              static_cast<unsigned int>(args.taskCount),
              static_cast<unsigned int>(args.partials ? args.parts : 1)};
}
// The longest contexts of a step stand behind the others: they begin first.
__device__ __forceinline__ AttentionTask taskOfBlock(const AttentionArgs& args) {
  return args.tasks[args.taskCount - 1 - static_cast<int>(blockIdx.y)];
}

// Softmax sums over some keys are `total`, of 2^(score - reference), and for every dimension one of these
// times values. What both are multiplied by when the sums of the keys that follow are added to them:
struct PartFactors {
  float mine;
  float theirs;

  __device__ __forceinline__ PartFactors(float& reference, float next) {
    const float larger = fmaxf(reference, next);
    mine = exp2Fast(reference - larger);
    theirs = exp2Fast(next - larger);
    reference = larger;
  }
  __device__ __forceinline__ float sum(float before, float next) const {
    return fmaf(before, mine, next * theirs);
  }
};

// A part of the keys of one row and head, as it waits to be put together with the others:
// [reference, total, headDim sums].
__device__ __forceinline__ float* partialOf(const AttentionArgs& args, int64_t rowHead, int part) {
  return args.partials + (rowHead * args.parts + part) * partialStride(args.cache.headDim);
}

// By float32 instructions, for caches of every type and heads of every size.
void attentionInFloats(cudaStream_t stream, const AttentionArgs& args);
// By tensor cores, where usesTensorCores() says so.
void attentionOnTensorCores(cudaStream_t stream, Path path, const AttentionArgs& args);
// Puts the parts in args.partials together.
void combineParts(cudaStream_t stream, const AttentionArgs& args);

}  // namespace glm_relay::cuda
