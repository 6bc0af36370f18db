#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/product_store.h"

namespace glm_relay::cuda {

namespace {

constexpr int kThreads = kParts * kWarp;

// How much a warp computes, and how many blocks of each of its rows of blocks it holds or has asked for.
template <Path kPath_, WeightType kType_, int kRowTiles_, int kPairs_, int kDepth_>
struct Tile {
  static constexpr Path kPath = kPath_;
  static constexpr WeightType kType = kType_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kPairs = kPairs_;  // of rows of blocks: 16 outputs each
  static constexpr int kDepth = kDepth_;
  static constexpr int kSums = kRowTiles * kPairs * 4;  // of a lane
  static constexpr int kSharedBytes = kParts * kSums * kWarp * sizeof(float);
};

// What a lane needs of a block.
template <WeightType kType>
struct LaneBlock {
  uint4 vectors[vectorsPerLane(kType)];
  uint2 scales;

  __device__ __forceinline__ void load(const uint8_t* block, int lane, int groups) {
#pragma unroll
    for (int i = 0; i < vectorsPerLane(kType); i++) {
      vectors[i] = load16Once(block + (i * kWarp + lane) * kVectorBytes);
    }
    if constexpr (kType != WeightType::kStored) {
      scales = load8Once(block + blockDataBytes(kType) + scaleVector(lane, groups));
    }
  }
};

template <class T>
class Warp {
 public:
  __device__ __forceinline__ Warp(const ProductArgs& args, const Share& share)
      : args_(args),
        lane_(laneOfThread()),
        selectors_(lane_, args.groupsPerBlock),
        end_(smaller(args.columnBlocks, (warpOfThread() + 1) * blocksPerPart(args.columnBlocks))) {
    const int begin = smaller(end_, warpOfThread() * blocksPerPart(args.columnBlocks));
#pragma unroll
    for (int i = 0; i < 2 * T::kPairs; i++) {
      // Blocks behind the last are computed like it, and not stored.
      const int rowBlock = smaller(static_cast<int>(blockIdx.x) * 2 * T::kPairs + i, args.rowBlocks - 1);
      weights_[i] = share.weights + static_cast<int64_t>(rowBlock) * args.columnBlocks * args.blockBytes;
    }
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
      const int rowTile = smaller(share.firstTile + i, share.endTile() - 1);
      x_[i] = reinterpret_cast<const uint8_t*>(args.x) +
              (static_cast<int64_t>(rowTile) * args.columnBlocks * kQuarters * kWarp + lane_) * kVectorBytes;
    }
    sum(begin);
  }

  float sums[T::kRowTiles][T::kPairs][4] = {};

 private:
  using Blocks = LaneBlock<T::kType>[2 * T::kPairs];
  // A quarter of x for every row tile.
  using Rows = uint4[T::kRowTiles];

  __device__ __forceinline__ void load(Blocks& blocks, int columnBlock) {
    if (columnBlock >= end_) return;
#pragma unroll
    for (int i = 0; i < 2 * T::kPairs; i++) {
      blocks[i].load(weights_[i] + static_cast<int64_t>(columnBlock) * args_.blockBytes, lane_,
                     args_.groupsPerBlock);
    }
  }

  // Of the last block's last quarter also the one behind it, which nobody uses.
  __device__ __forceinline__ void loadRows(Rows& rows, int quarter) {
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) rows[i] = load16(x_[i] + quarter * (kWarp * kVectorBytes));
  }

  __device__ __forceinline__ void multiply(const Blocks& blocks, Rows (&rows)[2], int columnBlock) {
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      loadRows(rows[(quarter + 1) % 2], columnBlock * kQuarters + quarter + 1);
#pragma unroll
      for (int pair = 0; pair < T::kPairs; pair++) {
        uint32_t weights[2][kQuarterSteps][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const LaneBlock<T::kType>& block = blocks[2 * pair + i];
          dequantize<T::kType>(block.vectors[quarter / quartersPerVector(T::kType)], quarter,
                               selectors_.pair(block.scales, quarter), weights[i]);
        }
#pragma unroll
        for (int step = 0; step < kQuarterSteps; step++) {
#pragma unroll
          for (int i = 0; i < T::kRowTiles; i++) {
            multiplyStep<T::kPath>(sums[i][pair], weights[0][step], weights[1][step], rows[quarter % 2][i],
                                   step);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void sum(int begin) {
    Blocks ring[T::kDepth] = {};
    Rows rows[2] = {};
#pragma unroll
    for (int i = 0; i < T::kDepth; i++) load(ring[i], begin + i);
    loadRows(rows[0], begin * kQuarters);
    for (int block = begin; block < end_; block += T::kDepth) {
#pragma unroll
      for (int i = 0; i < T::kDepth; i++) {
        if (block + i >= end_) break;
        multiply(ring[i], rows, block + i);
        load(ring[i], block + i + T::kDepth);
      }
    }
  }

  const ProductArgs& args_;
  const int lane_;
  const ScaleSelectors selectors_;
  const int end_;
  const uint8_t* weights_[2 * T::kPairs];
  const uint8_t* x_[T::kRowTiles];
};

template <class T>
__device__ __forceinline__ void multiply(const ProductArgs& args, const Share& share) {
  float* shared = reinterpret_cast<float*>(sharedMemory());
  {
    const Warp<T> warp(args, share);
    float* mine = shared + warpOfThread() * T::kSums * kWarp + laneOfThread();
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < T::kPairs; j++) {
#pragma unroll
        for (int c = 0; c < 4; c++) mine[((i * T::kPairs + j) * 4 + c) * kWarp] = warp.sums[i][j][c];
      }
    }
  }
  __syncthreads();
  const int perPart = blocksPerPart(args.columnBlocks);
  const int parts = (args.columnBlocks + perPart - 1) / perPart;
  const int lane = laneOfThread();
  for (int at = warpOfThread(); at < T::kSums; at += kParts) {
    float sum = shared[at * kWarp + lane];
    for (int part = 1; part < parts; part++) sum += shared[(part * T::kSums + at) * kWarp + lane];
    const int tile = at / 4;
    storeSum(args, share, sum, share.firstTile + tile / T::kPairs,
             static_cast<int>(blockIdx.x) * T::kPairs + tile % T::kPairs, lane, at % 4);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) narrowKernel(const ProductArgs args) {
  multiply<T>(args, shareOf(args, T::kRowTiles));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    groupedNarrowKernel(const ProductArgs args, const GroupedRows grouped) {
  const Share share = shareOf(grouped);
  if (share.endRow > 0) multiply<T>(args, share);
}

template <Path kPath, WeightType kType, int kRowTiles>
struct TileFor {
  static constexpr bool kSmall = kType == WeightType::kInt4;
  using Type = Tile<kPath, kType, kRowTiles, 1, kSmall ? 4 : 2>;
};

template <class T>
void start(cudaStream_t stream, const ProductArgs& args, const GroupedRows* grouped) {
  const dim3 grid{static_cast<unsigned int>((args.rowBlocks + 2 * T::kPairs - 1) / (2 * T::kPairs)),
                  rowTilesOfGrid(args, T::kRowTiles, grouped), 1};
  if (grouped == nullptr) return launch(narrowKernel<T>, grid, kThreads, T::kSharedBytes, stream, args);
  launch(groupedNarrowKernel<T>, grid, kThreads, T::kSharedBytes, stream, args, *grouped);
}

template <Path kPath, WeightType kType>
void startOfType(cudaStream_t stream, int rowTiles, const ProductArgs& args, const GroupedRows* grouped) {
  if (rowTiles == 1) return start<typename TileFor<kPath, kType, 1>::Type>(stream, args, grouped);
  if (rowTiles == 2) return start<typename TileFor<kPath, kType, 2>::Type>(stream, args, grouped);
  start<typename TileFor<kPath, kType, 4>::Type>(stream, args, grouped);
}

template <Path kPath>
void startOfPath(cudaStream_t stream, WeightType type, int rowTiles, const ProductArgs& args,
                 const GroupedRows* grouped) {
  switch (type) {
    case WeightType::kInt4:
      return startOfType<kPath, WeightType::kInt4>(stream, rowTiles, args, grouped);
    case WeightType::kInt8:
      return startOfType<kPath, WeightType::kInt8>(stream, rowTiles, args, grouped);
    case WeightType::kStored:
      return startOfType<kPath, WeightType::kStored>(stream, rowTiles, args, grouped);
  }
}

}  // namespace

void narrowProduct(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args,
                   const GroupedRows* grouped) {
  if (path == Path::kAmpere) return startOfPath<Path::kAmpere>(stream, type, rowTiles, args, grouped);
  startOfPath<Path::kTuring>(stream, type, rowTiles, args, grouped);
}

}  // namespace glm_relay::cuda
