// The KV cache in a GPU's memory, of one layer: [block][tile of 16 slots][KV head][slot][dimension], keys and
// values alike, in the cache's type; of 8-bit tiles the FP16 scales of the 16 slots follow. So a tile has as
// many bytes as on the CPU (KvPlan), in another order.
#pragma once

#include "cuda/kernels/attention.h"
#include "cuda/kernels/device.h"
#include "kernels/kernels.h"

namespace glm_relay::cuda {

struct CacheLayout {
  int tilesPerBlock;
  int kvHeadCount;
  int headDim;
  int64_t tileBytes;

  // `table` names the blocks of a sequence in order.
  __device__ __forceinline__ int64_t tileOffset(const int32_t* table, int tile, int head) const {
    const int64_t tiles =
        static_cast<int64_t>(table[tile / tilesPerBlock]) * tilesPerBlock + tile % tilesPerBlock;
    return (tiles * kvHeadCount + head) * tileBytes;
  }
};

__device__ __forceinline__ CacheLayout layoutOf(const CacheView& cache) {
  return {cache.tilesPerBlock, cache.kvHeadCount, cache.headDim, cache.tileBytes};
}

template <KvType Type>
struct CacheElement;

template <>
struct CacheElement<KvType::kFloat32> {
  static constexpr int kBytes = 4;
  static __device__ __forceinline__ float load(const uint8_t* at) {
    return *reinterpret_cast<const float*>(at);
  }
  static __device__ __forceinline__ void store(uint8_t* at, float x) { *reinterpret_cast<float*>(at) = x; }
};
template <>
struct CacheElement<KvType::kFloat16> {
  static constexpr int kBytes = 2;
  static __device__ __forceinline__ float load(const uint8_t* at) {
    return halfValue(*reinterpret_cast<const uint16_t*>(at));
  }
  static __device__ __forceinline__ void store(uint8_t* at, float x) {
    *reinterpret_cast<uint16_t*>(at) = halfBits(x);
  }
};
template <>
struct CacheElement<KvType::kBfloat16> {
  static constexpr int kBytes = 2;
  static __device__ __forceinline__ float load(const uint8_t* at) {
    return bfloatValue(*reinterpret_cast<const uint16_t*>(at));
  }
  static __device__ __forceinline__ void store(uint8_t* at, float x) {
    *reinterpret_cast<uint16_t*>(at) = bfloatBits(x);
  }
};
// To be multiplied by the slot's scale.
template <>
struct CacheElement<KvType::kInt8> {
  static constexpr int kBytes = 1;
  static __device__ __forceinline__ float load(const uint8_t* at) {
    return static_cast<float>(*reinterpret_cast<const int8_t*>(at));
  }
};

}  // namespace glm_relay::cuda
