#include "cuda/kernels/device.h"
#include "cuda/kernels/experts.h"

namespace glm_relay::cuda {

namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
// Rows of x that a block of threads multiplies while it holds weights.
constexpr int kRows = 4;

// The values of a row that a lane's weights of one step belong to (weight_layout.h).
struct Values {
  float of[4];
};

// `inPairs`: all of them exist, and pairs lie on multiples of 8 bytes.
__device__ __forceinline__ Values columnsOf(const float* row, int column, int k, bool inPairs) {
  if (inPairs) {
    const float2 near = *reinterpret_cast<const float2*>(row + column);
    const float2 far = *reinterpret_cast<const float2*>(row + column + kStepColumns / 2);
    return {{near.x, near.y, far.x, far.y}};
  }
  Values values = {};
  for (int i = 0; i < 4; i++) {
    const int at = column + i / 2 * (kStepColumns / 2) + i % 2;
    values.of[i] = at < k ? row[at] : 0.0f;
  }
  return values;
}

// One block per 8 experts and kRows rows: the columns are shared out to its warps, a block of 128 at a time.
__global__ void __launch_bounds__(kThreads) logitsKernel(const RouterArgs args) {
  enterKernel();
  float* partial = reinterpret_cast<float*>(sharedMemory());  // [warps, kRows, 8]
  const int lane = laneOfThread();
  const int warp = warpOfThread();
  const int firstRow = static_cast<int>(blockIdx.y) * kRows;
  float sums[kRows] = {};
  for (int block = warp; block < args.columnBlocks; block += kWarps) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * args.columnBlocks + block;
    const auto* vectors =
        reinterpret_cast<const uint4*>(args.weights + index * blockDataBytes(WeightType::kStored));
    uint4 held[vectorsPerLane(WeightType::kStored)];
#pragma unroll
    for (int vector = 0; vector < vectorsPerLane(WeightType::kStored); vector++) {
      held[vector] = vectors[vector * kWarp + lane];
    }
    const bool inPairs = args.k % 2 == 0 && (block + 1) * kBlockColumns <= args.k;
#pragma unroll
    for (int step = 0; step < kBlockSteps; step++) {
      const uint4& vector = held[step / 2];
      const uint32_t near = step % 2 == 0 ? vector.x : vector.z;
      const uint32_t far = step % 2 == 0 ? vector.y : vector.w;
      const float weights[4] = {
          halfValue(static_cast<uint16_t>(near)), halfValue(static_cast<uint16_t>(near >> 16)),
          halfValue(static_cast<uint16_t>(far)), halfValue(static_cast<uint16_t>(far >> 16))};
      const int column = block * kBlockColumns + step * kStepColumns + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        if (firstRow + i >= args.rows) continue;
        const Values values =
            columnsOf(args.x + static_cast<int64_t>(firstRow + i) * args.k, column, args.k, inPairs);
        for (int c = 0; c < 4; c++) sums[i] = fmaf(values.of[c], weights[c], sums[i]);
      }
    }
  }
  // Four lanes have columns of the same expert.
#pragma unroll
  for (int i = 0; i < kRows; i++) {
    float sum = sums[i];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (lane % 4 == 0) partial[(warp * kRows + i) * kBlockRows + lane / 4] = sum;
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  const int row = firstRow + thread / kBlockRows;
  const int expert = static_cast<int>(blockIdx.x) * kBlockRows + thread % kBlockRows;
  if (thread >= kRows * kBlockRows || row >= args.rows || expert >= args.shape.count) return;
  float sum = 0.0f;
  for (int from = 0; from < kWarps; from++) sum += partial[from * kRows * kBlockRows + thread];
  args.logits[static_cast<int64_t>(row) * args.shape.count + expert] = sum * args.rowScales[expert];
}

}  // namespace

void routerLogits(cudaStream_t stream, const RouterArgs& args) {
  const dim3 grid{static_cast<unsigned int>((args.shape.count + kBlockRows - 1) / kBlockRows),
                  static_cast<unsigned int>((args.rows + kRows - 1) / kRows), 1};
  launch(logitsKernel, grid, kThreads, kWarps * kRows * kBlockRows * sizeof(float), stream, args);
}

}  // namespace glm_relay::cuda
