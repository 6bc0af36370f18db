// The 16 queries of a warp: which rows they are, and how they come to shared memory.
#pragma once

#include "cuda/kernels/attention_fragments.h"
#include "cuda/kernels/scaled_halves.h"

namespace glm_relay::cuda {

// A lane's share of 16 queries: rows lane / 4 and lane / 4 + 8 of every tile of sums.
struct LaneRows {
  int lastVisible[2];  // -1: there is no such query
  int rowHead[2];      // of the rows that are computed, [row, head]
  float scale[2];      // of a product of a query and a key
  int highestVisible;  // over all rows of the warp
};

// Brings a warp's queries to shared memory as FP16 times a power of two, or as two bfloat16 numbers.
template <class T>
__device__ __forceinline__ void loadQueries(uint8_t* queries, const AttentionArgs& args,
                                            const AttentionTask& task, const BlockHeads& heads,
                                            LaneRows& rows) {
  constexpr int kGroups = 4;             // of 4 queries: 8 lanes have one
  constexpr int kPieces = T::kDim / 32;  // of 4 dimensions
  const int headDim = T::headDim(args.cache);
  const int lane = laneOfThread();
  const int firstQuery = warpOfThread() * kTaskQueries;
  const int queryCount = task.rowCount * heads.count;
  uint4 held[kGroups][kPieces];
#pragma unroll
  for (int i = 0; i < kGroups; i++) {
    const int query = firstQuery + 4 * i + lane / 8;
    const int64_t row = task.row + query / heads.count;
    const float* from =
        args.queries + (row * args.cache.headCount + heads.first + query % heads.count) * headDim;
#pragma unroll
    for (int j = 0; j < kPieces; j++) {
      const int d = lane % 8 * 4 + 32 * j;
      held[i][j] =
          query < queryCount && d < headDim ? *reinterpret_cast<const uint4*>(from + d) : uint4{0, 0, 0, 0};
    }
  }
  const float scale = kLog2E / sqrtf(static_cast<float>(headDim));
#pragma unroll
  for (int i = 0; i < kGroups; i++) {
    uint32_t largest = 0;
    const auto see = [&](uint32_t bits) {
      const uint32_t magnitude = magnitudeBits(__uint_as_float(bits));
      largest = magnitude > largest ? magnitude : largest;
    };
#pragma unroll
    for (int j = 0; j < kPieces; j++) {
      see(held[i][j].x);
      see(held[i][j].y);
      see(held[i][j].z);
      see(held[i][j].w);
    }
    for (int mask = 1; mask < 8; mask *= 2) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, mask);
      largest = other > largest ? other : largest;
    }
    const RowFactor of(largest);
#pragma unroll
    for (int j = 0; j < kPieces; j++) {
      const int d = lane % 8 * 4 + 32 * j;
      const uint4& piece = held[i][j];
      const float values[4] = {__uint_as_float(piece.x) * of.factor, __uint_as_float(piece.y) * of.factor,
                               __uint_as_float(piece.z) * of.factor, __uint_as_float(piece.w) * of.factor};
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        const int column = queryColumn<T::kType>(d + 2 * pair);
        uint8_t* to = queries + T::queryPlace(4 * i + lane / 8, column / 8) + column % 8 * 2;
        const float low = values[2 * pair];
        const float high = values[2 * pair + 1];
        const uint32_t bits = packPair<T>(low, high);
        *reinterpret_cast<uint32_t*>(to) = bits;
        if constexpr (T::kQueryParts == 2) {
          *reinterpret_cast<uint32_t*>(to + T::kQueryPartBytes) = packRest(bits, low, high);
        }
      }
    }
    const float ofRow = __shfl_sync(0xffffffffu, of.scale * scale, lane / 4 % 4 * 8);
    if (i == lane / 16) rows.scale[0] = ofRow;
    if (i == lane / 16 + 2) rows.scale[1] = ofRow;
  }
}

__device__ __forceinline__ LaneRows rowsOfLane(const AttentionArgs& args, const AttentionTask& task,
                                               const BlockHeads& heads) {
  LaneRows rows;
  for (int i = 0; i < 2; i++) {
    const int query = warpOfThread() * kTaskQueries + laneOfThread() / 4 + 8 * i;
    const int row = task.row + query / heads.count;
    rows.lastVisible[i] = query < task.rowCount * heads.count ? args.lastVisibleOfRow[row] : -1;
    rows.rowHead[i] = (row - args.firstRow) * args.cache.headCount + heads.first + query % heads.count;
    rows.scale[i] = 0.0f;
  }
  int highest = rows.lastVisible[0] < rows.lastVisible[1] ? rows.lastVisible[1] : rows.lastVisible[0];
  for (int mask = 4; mask < kWarp; mask *= 2) {
    const int other = __shfl_xor_sync(0xffffffffu, highest, mask);
    highest = other > highest ? other : highest;
  }
  rows.highestVisible = highest;
  return rows;
}

}  // namespace glm_relay::cuda
