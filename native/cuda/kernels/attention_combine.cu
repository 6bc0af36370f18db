#include "cuda/kernels/attention_parts.h"

namespace glm_relay::cuda {

namespace {

constexpr int kWarps = 4;
// Parts that are on their way from memory together.
constexpr int kBatch = 16;

// A lane is a dimension of a row's head.
__global__ void combineKernel(const AttentionArgs args) {
  enterKernel();
  const int headCount = args.cache.headCount;
  const int headDim = args.cache.headDim;
  const int warpsPerHead = (headDim + kWarp - 1) / kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + warpOfThread();
  const int64_t at = warp / warpsPerHead;
  const int d = static_cast<int>(warp % warpsPerHead) * kWarp + laneOfThread();
  if (at >= static_cast<int64_t>(args.rows) * headCount || d >= headDim) return;
  const int parts = args.lastVisibleOfRow[args.firstRow + at / headCount] / kPartSlots + 1;
  float reference = minusInfinity();
  float total = 0.0f;
  float out = 0.0f;
  for (int first = 0; first < parts; first += kBatch) {
    float2 heads[kBatch];
    float sums[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const float* from = partialOf(args, at, first + i < parts ? first + i : parts - 1);
      heads[i] = *reinterpret_cast<const float2*>(from);
      sums[i] = from[2 + d];
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      if (first + i >= parts) continue;
      const PartFactors factors(reference, heads[i].x);
      total = factors.sum(total, heads[i].y);
      out = factors.sum(out, sums[i]);
    }
  }
  args.out[at * headDim + d] = out * (1.0f / total);
}

}  // namespace

void combineParts(cudaStream_t stream, const AttentionArgs& args) {
  const int warpsPerHead = (args.cache.headDim + kWarp - 1) / kWarp;
  const int64_t warps = static_cast<int64_t>(args.rows) * args.cache.headCount * warpsPerHead;
  launch(combineKernel, dim3{static_cast<unsigned int>((warps + kWarps - 1) / kWarps), 1, 1}, kWarps * kWarp,
         0, stream, args);
}

}  // namespace glm_relay::cuda
