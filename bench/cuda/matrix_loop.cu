// The matrix instructions of the products, in registers, as many independent ones as hide their latency.
#include "cuda/kernels/fragments.h"
#include "measure.h"

namespace glm_relay::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 132 * 8;
constexpr int kRounds = 512;
constexpr int kIndependent = 12;

template <Path kPath>
__global__ void loop(float* sink) {
  enterKernel();
  float sums[kIndependent][4] = {};
  // Small numbers that are not all the same: zeros would cost less power.
  const uint32_t seed = 0x2c002c00u + threadIdx.x * 0x00010003u;
  const uint4 x = {seed, seed ^ 0x80000000u, seed + 77u, seed ^ 0x00008000u};
  const uint32_t first[2] = {seed + 5u, seed ^ 0x80008000u};
  const uint32_t second[2] = {seed + 9u, seed ^ 0x00018000u};
  for (int round = 0; round < kRounds; round++) {
#pragma unroll
    for (int i = 0; i < kIndependent; i++) multiplyStep<kPath>(sums[i], first, second, x, 0);
  }
  float sum = 0.0f;
  for (int i = 0; i < kIndependent; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  if (sum == 1.0f) *sink = sum;
}

}  // namespace

double startMatrixLoop(Path path) {
  static const ZeroMemory sink(sizeof(float));
  const auto kernel = path == Path::kAmpere ? loop<Path::kAmpere> : loop<Path::kTuring>;
  launch(kernel, dim3{kBlocks, 1, 1}, kThreads, 0, stream(), sink.as<float>());
  return 2.0 * 16 * 8 * kStepColumns * kIndependent * kRounds * (kThreads / kWarp) * kBlocks;
}

}  // namespace glm_relay::cuda
