#include "cuda/kernels/attention.h"
#include "cuda/kernels/cache_slot.h"
#include "cuda/kernels/device.h"

namespace glm_relay::cuda {

namespace {

constexpr int kWarps = 4;
// Dimensions of a head that a lane has: lane, lane + 32, ...
constexpr int kPerLane = kMaxHeadDim / kWarp;

// Writes one head's key or value to its slot, by a whole warp.
template <KvType Type>
__device__ __forceinline__ void storeHead(uint8_t* tile, int slot, int headDim, const float (&x)[kPerLane]) {
  const int lane = laneOfThread();
  using Element = CacheElement<Type>;
  uint8_t* to = tile + static_cast<int64_t>(slot) * headDim * Element::kBytes;
  if constexpr (Type != KvType::kInt8) {
    for (int i = 0; i < kPerLane; i++) {
      const int d = lane + i * kWarp;
      if (d < headDim) Element::store(to + d * Element::kBytes, x[i]);
    }
  } else {
    uint32_t largest = 0;
    for (int i = 0; i < kPerLane; i++) {
      const uint32_t magnitude = lane + i * kWarp < headDim ? __float_as_uint(x[i]) & 0x7fffffffu : 0;
      largest = magnitude > largest ? magnitude : largest;
    }
    largest = warpMax(largest);
    // As bits a NaN is the largest, and makes the scale one.
    const uint16_t scale = halfBits(__uint_as_float(largest) / 127.0f);
    const float value = halfValue(scale);
    const float inverse = value > 0.0f && value <= 65504.0f ? 1.0f / value : 0.0f;
    for (int i = 0; i < kPerLane; i++) {
      const int d = lane + i * kWarp;
      if (d < headDim) {
        to[d] =
            static_cast<uint8_t>(static_cast<int8_t>(rintf(fminf(fmaxf(x[i] * inverse, -127.0f), 127.0f))));
      }
    }
    if (lane == 0) *reinterpret_cast<uint16_t*>(tile + 16 * headDim + 2 * slot) = scale;
  }
}

template <KvType Type>
__device__ __forceinline__ void storeSlot(const CacheView& cache, bool isValue, int sequence, int slot,
                                          int head, const float (&x)[kPerLane]) {
  const int32_t* table = cache.tables + cache.tableBegins[sequence];
  uint8_t* tile = (isValue ? cache.values : cache.keys) + layoutOf(cache).tileOffset(table, slot / 16, head);
  storeHead<Type>(tile, slot % 16, cache.headDim, x);
}

// Element d of a head after the norm, whose factor is r, before it is rotated.
__device__ __forceinline__ float normed(const float* in, const float* norm, float r, int d) {
  return norm ? (in[d] * r) * norm[d] : in[d];
}

__device__ __forceinline__ float rotated(const StoreArgs& args, const float* in, const float* norm, float r,
                                         const float* rotations, int d) {
  const float x = normed(in, norm, r, d);
  if (d >= args.ropeDim) return x;
  const int width = args.ropeDim / args.ropeAxes;
  const int at = d % width;
  const int axis = d - at;
  const int pair = args.ropeHalves ? at % (width / 2) : at / 2;
  const bool second = args.ropeHalves ? at >= width / 2 : at % 2 == 1;
  const int distance = args.ropeHalves ? width / 2 : 1;
  const float cosine = rotations[axis + 2 * pair];
  const float sine = rotations[axis + 2 * pair + 1];
  const float other = normed(in, norm, r, second ? d - distance : d + distance);
  return second ? fmaf(x, cosine, other * sine) : fmaf(x, cosine, -(other * sine));
}

// One warp per row and head of q | k | v.
template <KvType Type>
__global__ void storeKernel(const StoreArgs args) {
  enterKernel();
  const CacheView& cache = args.cache;
  const int heads = cache.headCount + 2 * cache.kvHeadCount;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + warpOfThread();
  const int row = static_cast<int>(at / heads);
  const int head = static_cast<int>(at % heads);
  if (row >= args.rows) return;
  const int lane = laneOfThread();
  const int headDim = cache.headDim;
  const float* in = args.qkv + (static_cast<int64_t>(row) * heads + head) * headDim;
  const bool isQuery = head < cache.headCount;
  const bool isValue = head >= cache.headCount + cache.kvHeadCount;
  const float* norm = isQuery ? args.queryNorm : isValue ? nullptr : args.keyNorm;
  float r = 1.0f;
  if (norm != nullptr) {
    float square = 0.0f;
    for (int d = lane; d < headDim; d += kWarp) square = fmaf(in[d], in[d], square);
    r = 1.0f / sqrtf(warpSum(square) / static_cast<float>(headDim) + args.eps);
  }
  const float* rotations = args.rotations + static_cast<int64_t>(row) * args.ropeDim;
  float x[kPerLane];
  for (int i = 0; i < kPerLane; i++) {
    const int d = lane + i * kWarp;
    x[i] = d >= headDim ? 0.0f : isValue ? in[d] : rotated(args, in, norm, r, rotations, d);
  }
  if (isQuery) {
    float* to = args.queries + (static_cast<int64_t>(row) * cache.headCount + head) * headDim;
    for (int i = 0; i < kPerLane; i++) {
      if (lane + i * kWarp < headDim) to[lane + i * kWarp] = x[i];
    }
    return;
  }
  const int kvHead = head - cache.headCount - (isValue ? cache.kvHeadCount : 0);
  storeSlot<Type>(cache, isValue, args.sequenceOfRow[row], args.slotOfRow[row], kvHead, x);
}

// One warp per sequence, slot and head of key | value.
template <KvType Type>
__global__ void prefixKernel(const CacheView cache, const float* keysValues, int length,
                             const int32_t* sequences, int count) {
  enterKernel();
  const int heads = 2 * cache.kvHeadCount;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarps + warpOfThread();
  const int head = static_cast<int>(at % heads);
  const int slot = static_cast<int>(at / heads % length);
  const int sequence = static_cast<int>(at / heads / length);
  if (sequence >= count) return;
  const float* in = keysValues + (static_cast<int64_t>(slot) * heads + head) * cache.headDim;
  float x[kPerLane];
  for (int i = 0; i < kPerLane; i++) {
    const int d = laneOfThread() + i * kWarp;
    x[i] = d < cache.headDim ? in[d] : 0.0f;
  }
  const bool isValue = head >= cache.kvHeadCount;
  storeSlot<Type>(cache, isValue, sequences[sequence], slot, head - (isValue ? cache.kvHeadCount : 0), x);
}

dim3 blocksOf(int64_t warps) { return dim3{static_cast<unsigned int>((warps + kWarps - 1) / kWarps), 1, 1}; }

}  // namespace

void storeKeysValues(cudaStream_t stream, const StoreArgs& args) {
  const int64_t warps = static_cast<int64_t>(args.rows) * (args.cache.headCount + 2 * args.cache.kvHeadCount);
  const auto start = [&](auto kernel) { launch(kernel, blocksOf(warps), kWarps * kWarp, 0, stream, args); };
  switch (args.cache.type) {
    case KvType::kFloat32:
      return start(storeKernel<KvType::kFloat32>);
    case KvType::kFloat16:
      return start(storeKernel<KvType::kFloat16>);
    case KvType::kBfloat16:
      return start(storeKernel<KvType::kBfloat16>);
    case KvType::kInt8:
      return start(storeKernel<KvType::kInt8>);
  }
}

void storePrefix(cudaStream_t stream, const CacheView& cache, const float* keysValues, int length,
                 const int32_t* sequences, int count) {
  const int64_t warps = static_cast<int64_t>(count) * length * 2 * cache.kvHeadCount;
  const auto start = [&](auto kernel) {
    launch(kernel, blocksOf(warps), kWarps * kWarp, 0, stream, cache, keysValues, length, sequences, count);
  };
  switch (cache.type) {
    case KvType::kFloat32:
      return start(prefixKernel<KvType::kFloat32>);
    case KvType::kFloat16:
      return start(prefixKernel<KvType::kFloat16>);
    case KvType::kBfloat16:
      return start(prefixKernel<KvType::kBfloat16>);
    case KvType::kInt8:
      return start(prefixKernel<KvType::kInt8>);
  }
}

}  // namespace glm_relay::cuda
