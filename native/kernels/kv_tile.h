// One element of a key or value tile (KvView in kernels.h) as the canon sees it: a float32. In an
// unnamed namespace for the same reason as half.h.
#pragma once

#include "kernels/half.h"

namespace glm_relay {
namespace {

// Slot j of the tile, dimension d.
template <KvType Type>
struct KvTile {
  using Element = Stored<static_cast<DType>(Type)>;
  static inline float key(const uint8_t* tile, int, int j, int d) {
    return Element::load(tile, d * kKeyTile + j);
  }
  static inline float value(const uint8_t* tile, int headDim, int j, int d) {
    return Element::load(tile, j * headDim + d);
  }
};

// q * scale is exact in float32: 7 bits times 11.
template <>
struct KvTile<KvType::kInt8> {
  static inline float scale(const uint8_t* tile, int headDim, int j) {
    return Stored<DType::kFloat16>::load(tile + kKeyTile * headDim, j);
  }
  static inline float key(const uint8_t* tile, int headDim, int j, int d) {
    return static_cast<float>(reinterpret_cast<const int8_t*>(tile)[d * kKeyTile + j]) *
           scale(tile, headDim, j);
  }
  static inline float value(const uint8_t* tile, int headDim, int j, int d) {
    return static_cast<float>(reinterpret_cast<const int8_t*>(tile)[j * headDim + d]) *
           scale(tile, headDim, j);
  }
};

}  // namespace
}  // namespace glm_relay
