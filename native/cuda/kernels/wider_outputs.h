// What the sums of the wider products become, part after part.
#pragma once

#include "cuda/kernels/product_sums.h"
#include "cuda/kernels/wider_tile.h"

namespace glm_relay::cuda {

// The outputs of a warp in y, where sums of parts can wait for those of the next part.
template <class T>
class WiderOutputs {
 public:
  __device__ __forceinline__ WiderOutputs(const ProductArgs& args, const Share& share)
      : args_(args),
        share_(share),
        thread_(computedAnew(static_cast<int>(threadIdx.x))),
        lane_(thread_ % kWarp),
        n_(computedAnew(args.n)),
        firstRow_((share.firstTile + thread_ / kWarp / T::kOutputWarps * T::kRowTiles) * kTileRows),
        firstColumn_((outputTile() * T::kOutputWarps + thread_ / kWarp % T::kOutputWarps) * T::kPairs *
                     kPairRows),
        hasVectors_(firstRow_ + T::kRowTiles * kTileRows <= share.endRow &&
                    firstColumn_ + T::kPairs * kPairRows <= args.n && args.n % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(args.y) % sizeof(float4) == 0) {}

  // Adds the sums that wait to these.
  __device__ __forceinline__ void add(ProductSums<T>& sums) const {
    if (!hasVectors_) {
      return forEachOutput(
          [&](int i, int r, int j, int h, float* place) { sums.of[i][j][2 * h + r] += *place; });
    }
    const float* place = firstVector();
#pragma unroll
    for (int begin = 0; begin < T::kRowTiles; begin += kBatch) {
      float4 before[kBatch][T::kPairs];
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
#pragma unroll
        for (int j = 0; j < T::kPairs; j++) {
          before[i][j] = *reinterpret_cast<const float4*>(place + j * kPairRows);
        }
        place += kTileRows * n_;
      }
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
#pragma unroll
        for (int j = 0; j < T::kPairs; j++) {
          float(&of)[4] = sums.of[begin + i][j];
          of[0] += before[i][j].x;
          of[1] += before[i][j].y;
          of[2] += before[i][j].z;
          of[3] += before[i][j].w;
        }
      }
    }
  }
  // Makes them wait.
  __device__ __forceinline__ void keep(const ProductSums<T>& sums) const {
    if (!hasVectors_) {
      return forEachOutput(
          [&](int i, int r, int j, int h, float* place) { *place = sums.of[i][j][2 * h + r]; });
    }
    float* place = firstVector();
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < T::kPairs; j++) {
        const float(&of)[4] = sums.of[i][j];
        *reinterpret_cast<float4*>(place + j * kPairRows) = {of[0], of[1], of[2], of[3]};
      }
      place += kTileRows * n_;
    }
  }
  // The sums are complete.
  __device__ __forceinline__ void store(const ProductSums<T>& sums) const {
    float scales[T::kPairs][2];
    float bias[T::kPairs][2];
#pragma unroll
    for (int j = 0; j < T::kPairs; j++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int column = smaller(columnOf(j, h), args_.n - 1);
        scales[j][h] = share_.rowScales[column];
        bias[j][h] = args_.bias ? args_.bias[column] : -0.0f;  // adding it changes no bit
      }
    }
    const float* xScales = args_.xScales + rowOf(0, 0);
    forEachOutput([&](int i, int r, int j, int h, float* place) {
      *place = (sums.of[i][j][2 * h + r] * scales[j][h]) * xScales[i * kTileRows + r] + bias[j][h];
    });
  }

 private:
  // Outputs of a pair.
  static constexpr int kPairRows = 2 * kBlockRows;
  // Tiles whose numbers are on their way from memory together.
  static constexpr int kBatch = 4;

  // A lane has its four sums of a row tile and a pair side by side, somewhere among the 8 x 16 outputs that
  // all lanes have of them: whole vectors go to memory and come back. At the borders there is no room for
  // them, and every sum waits where its output will be.
  __device__ __forceinline__ float* firstVector() const {
    return args_.y + (firstRow_ + lane_ / 4) * n_ + (firstColumn_ + lane_ % 4 * 4);
  }

  // See multiplyStep: sum 2 h + r of a lane.
  __device__ __forceinline__ int rowOf(int i, int r) const {
    return firstRow_ + i * kTileRows + lane_ % 4 * 2 + r;
  }
  __device__ __forceinline__ int columnOf(int j, int h) const {
    return firstColumn_ + j * kPairRows + lane_ / 4 + h * kBlockRows;
  }
  // visit(i, r, j, h, place)
  template <class Visit>
  __device__ __forceinline__ void forEachOutput(Visit visit) const {
    float* place = args_.y + rowOf(0, 0) * n_ + columnOf(0, 0);
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const bool isRow = rowOf(i, r) < share_.endRow;
#pragma unroll
        for (int j = 0; j < T::kPairs; j++) {
#pragma unroll
          for (int h = 0; h < 2; h++) {
            if (isRow && columnOf(j, h) < args_.n) {
              visit(i, r, j, h, place + r * n_ + (j * kPairRows + h * kBlockRows));
            }
          }
        }
      }
      place += kTileRows * n_;
    }
  }

  const ProductArgs& args_;
  const Share& share_;
  const int thread_;
  const int lane_;
  const int64_t n_;
  const int firstRow_;
  const int firstColumn_;
  const bool hasVectors_;
};

}  // namespace glm_relay::cuda
