// Queries, keys and values as fragments of matrix instructions.
//
// 8-bit keys and values are read as if two of them were one number. So the dimensions of a step of 16 stand
// in another order in keys, where queries follow it, and in values, where sums do.
#pragma once

#include "cuda/kernels/attention_tile.h"

namespace glm_relay::cuda {

// Where dimension d, an even one, stands in a query, and d + 1 behind it.
template <KvType Type>
__device__ __forceinline__ int queryColumn(int d) {
  if constexpr (Type != KvType::kInt8) return d;
  return d / 16 * 16 + d % 4 / 2 * 8 + d % 16 / 4 * 2;
}

// Two of a lane's sums that are neighbours, the i-th ones of a row: of dimensions ofLane() + ofPair(i) and
// the next one. `row` is 0, or 1 for the row 8 further down.
template <KvType Type>
struct SumPair {
  static __device__ __forceinline__ int ofLane(int lane) {
    return lane % 4 * (Type == KvType::kInt8 ? 4 : 2);
  }
  static __device__ __forceinline__ int ofPair(int i) {
    return Type == KvType::kInt8 ? i / 2 * 16 + i % 2 * 2 : 8 * i;
  }
  template <int kTiles>
  static __device__ __forceinline__ float low(const float (&sums)[kTiles][4], int row, int i) {
    return Type == KvType::kInt8 ? sums[i / 2 * 2][2 * row + i % 2] : sums[i][2 * row];
  }
  template <int kTiles>
  static __device__ __forceinline__ float high(const float (&sums)[kTiles][4], int row, int i) {
    return Type == KvType::kInt8 ? sums[i / 2 * 2 + 1][2 * row + i % 2] : sums[i][2 * row + 1];
  }
};

// Bytes `first` and first + stride of four, to which 128 was added, as FP16: a byte q + 128 below the high
// byte of 1024 is 1152 + q.
__device__ __forceinline__ uint32_t halvesOfBytes(uint32_t biased, int first, int stride) {
  const uint32_t selector =
      0x4040u | static_cast<uint32_t>(first) | static_cast<uint32_t>(first + stride) << 8;
  return subtractHalves(__byte_perm(biased, 0x64646464u, selector), 0x64806480u);
}

// Where a lane finds what it brings to a matrix of queries, keys or values: a step's vectors, two of a row,
// lie 32 times the step away, by an exclusive or.
template <class T>
__device__ __forceinline__ int queryPlaceOfLane(int lane) {
  return T::queryPlace(lane % 16, lane / 16);
}
template <class T>
__device__ __forceinline__ int keyPlaceOfLane(int lane) {
  if constexpr (T::kType == KvType::kInt8) return T::rowPlace(lane % 16, lane / 16);
  return T::rowPlace(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
template <class T>
__device__ __forceinline__ int valuePlaceOfLane(int lane) {
  return T::rowPlace(lane % 16, lane / 16);
}

// Keys of 16 slots as operands of kSteps steps: b[step][slots 8 i on]. From two
// vectors of each.
template <class T>
struct KeyFragments {
  static constexpr int kSteps = T::kType == KvType::kInt8 ? 2 : 1;
  uint32_t b[kSteps][2][2];

  __device__ __forceinline__ explicit KeyFragments(const void* row) {
    uint32_t words[4];
    loadMatrices(words, row);
    for (int i = 0; i < 4; i++) {
      if constexpr (T::kType != KvType::kInt8) {
        b[0][i / 2][i % 2] = words[i];
      } else {
        const uint32_t biased = words[i] ^ 0x80808080u;
        b[i / 2][i % 2][0] = halvesOfBytes(biased, 0, 1);
        b[i / 2][i % 2][1] = halvesOfBytes(biased, 2, 1);
      }
    }
  }
};

// Values of 16 slots as operands of kTiles tiles of 8 sums, from two vectors of each.
template <class T>
struct ValueFragments {
  static constexpr int kTiles = T::kType == KvType::kInt8 ? 4 : 2;
  uint32_t b[kTiles][2];

  // 8-bit values: scales[i] are those of slots 8 i + lane % 4 * 2 and of the next one.
  __device__ __forceinline__ ValueFragments(const void* row, const uint32_t (&scales)[2]) {
    uint32_t words[4];
    loadTransposed(words, row);
    for (int i = 0; i < 4; i++) {
      if constexpr (T::kType != KvType::kInt8) {
        b[i / 2][i % 2] = words[i];
      } else {
        const uint32_t biased = words[i] ^ 0x80808080u;
        for (int odd = 0; odd < 2; odd++) {
          b[i / 2 * 2 + odd][i % 2] = multiplyHalves(halvesOfBytes(biased, odd, 2), scales[i % 2]);
        }
      }
    }
  }
};

// Two numbers as a pair of the type that fragments have.
template <class T>
__device__ __forceinline__ uint32_t packPair(float low, float high) {
  if constexpr (T::kType == KvType::kBfloat16) return packBfloats(low, high);
  return packHalves(low, high);
}
// What a pair of bfloat16 numbers leaves of two numbers, as such a pair.
__device__ __forceinline__ uint32_t packRest(uint32_t pair, float low, float high) {
  return packBfloats(low - __uint_as_float(pair << 16), high - __uint_as_float(pair & 0xffff0000u));
}

template <class T>
__device__ __forceinline__ void multiplyTile(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (T::kType == KvType::kBfloat16) {
    multiplyBfloats16x8x16(c, a, b);
  } else if constexpr (T::kPath == Path::kAmpere) {
    multiply16x8x16(c, a, b);
  } else {
    multiply16x8x8(c, a, b[0]);
    multiply16x8x8(c, a + 2, b[1]);
  }
}

}  // namespace glm_relay::cuda
