// The sums of a lane: four for each row tile and pair of rows of blocks that its warp has (multiplyStep).
#pragma once

#include "cuda/kernels/device.h"

namespace glm_relay::cuda {

// T: a tile, with kRowTiles and kPairs.
template <class T>
struct ProductSums {
  float of[T::kRowTiles][T::kPairs][4];

  __device__ __forceinline__ void fill(float value) {
    forEach([&](int i, int j, int c) { of[i][j][c] = value; });
  }
  __device__ __forceinline__ void add(const ProductSums& other) {
    forEach([&](int i, int j, int c) { of[i][j][c] += other.of[i][j][c]; });
  }
  // visit(row tile, pair, sum)
  template <class Visit>
  static __device__ __forceinline__ void forEach(Visit visit) {
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < T::kPairs; j++) {
#pragma unroll
        for (int c = 0; c < 4; c++) visit(i, j, c);
      }
    }
  }
};

}  // namespace glm_relay::cuda
