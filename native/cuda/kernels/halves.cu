#include "cuda/kernels/activation.h"
#include "cuda/kernels/device.h"
#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

namespace {

// The largest magnitude of a row becomes a number of [2^14, 2^15): FP16 has room for sixteen thousand times
// smaller ones without a loss, and for ten bits more before they vanish.
constexpr int kTopExponent = 14;
// Beyond it the factor itself would leave float32's normal range; such rows are as good as zero.
constexpr int kMaxShift = 100;

__device__ __forceinline__ float powerOfTwo(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// By one block per row: row blockIdx.x of `out`, from the k values that valueOf(i) gives, twice.
template <class ValueOf>
__device__ __forceinline__ void rowToHalves(uint16_t* out, float* scales, int k, int paddedK,
                                            ValueOf valueOf) {
  uint32_t* partial = reinterpret_cast<uint32_t*>(sharedMemory());
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * paddedK;
  // As bits, magnitudes are in order, infinity and NaN above all numbers.
  uint32_t largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < k; i += kRowThreads) {
    const uint32_t magnitude = __float_as_uint(valueOf(i)) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = warpMax(largest);
  if (laneOfThread() == 0) partial[warpOfThread()] = largest;
  __syncthreads();
  for (int i = 0; i < kRowWarps; i++) largest = partial[i] > largest ? partial[i] : largest;

  const int shift = kTopExponent - (static_cast<int>(largest >> 23) - 127);
  const int kept = shift > kMaxShift ? kMaxShift : shift;
  const float factor = powerOfTwo(kept);
  for (int i = static_cast<int>(threadIdx.x); i < paddedK; i += kRowThreads) {
    out[begin + i] = halfBits(i < k ? valueOf(i) * factor : 0.0f);
  }
  // The numbers of a row that is not finite would be finite here; its products must not be.
  if (threadIdx.x == 0) {
    scales[blockIdx.x] = largest >= 0x7f800000u ? __uint_as_float(0x7fc00000u) : powerOfTwo(-kept);
  }
}

__global__ void toHalvesKernel(uint16_t* out, float* scales, const float* x, int k, int paddedK) {
  const float* row = x + static_cast<int64_t>(blockIdx.x) * k;
  rowToHalves(out, scales, k, paddedK, [&](int i) { return row[i]; });
}

__global__ void gatedSiluToHalvesKernel(uint16_t* out, float* scales, const float* x, int size,
                                        int paddedSize) {
  const float* row = x + static_cast<int64_t>(blockIdx.x) * 2 * size;
  rowToHalves(out, scales, size, paddedSize, [&](int i) { return silu(row[i]) * row[size + i]; });
}

}  // namespace

void toHalves(cudaStream_t stream, uint16_t* out, float* scales, const float* x, int rows, int k,
              int paddedK) {
  launch(toHalvesKernel, dim3{static_cast<unsigned int>(rows), 1, 1}, kRowThreads,
         kRowWarps * sizeof(uint32_t), stream, out, scales, x, k, paddedK);
}

void gatedSiluToHalves(cudaStream_t stream, uint16_t* out, float* scales, const float* x, int rows, int size,
                       int paddedSize) {
  launch(gatedSiluToHalvesKernel, dim3{static_cast<unsigned int>(rows), 1, 1}, kRowThreads,
         kRowWarps * sizeof(uint32_t), stream, out, scales, x, size, paddedSize);
}

}  // namespace glm_relay::cuda
