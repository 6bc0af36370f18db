#include <type_traits>

#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/product_store.h"
#include "cuda/kernels/product_sums.h"

namespace glm_relay::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
// Registers are shared out so that this many blocks of threads find room.
constexpr int kBlocksPerProcessor = 2;
// Of a row tile, in the columns of a block.
constexpr int kTileVectors = kQuarters * kWarp;

// How much a block of threads computes, and how many stages of copies are under way.
template <Path kPath_, WeightType kType_, int kRowTiles_, int kPairs_, int kStages_>
struct Tile {
  static constexpr Path kPath = kPath_;
  static constexpr WeightType kType = kType_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kPairs = kPairs_;  // of rows of blocks, of a warp: 16 outputs each
  static constexpr int kStages = kStages_;

  static constexpr int kWarpBlocks = 2 * kPairs;
  static constexpr int kRowBlocks = kWarps * kWarpBlocks;
  static constexpr int kDataVectors = vectorsPerLane(kType);
  static constexpr bool kHasScales = kType != WeightType::kStored;
  static constexpr int kBlockBytes = maxBlockBytes(kType);
  static constexpr int kXBytes = kRowTiles * kTileVectors * kVectorBytes;
  static constexpr int kStageBytes = kXBytes + kRowBlocks * kBlockBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  // Vectors of x that a thread copies per stage.
  static constexpr int kXVectors = kRowTiles * kTileVectors / kThreads;
};

// What one thread brings from global memory for one stage; `to` takes it piece by piece:
// to(shared, global, valid), in an order that is the same for every stage.
template <class T, class To>
__device__ __forceinline__ void forEachPiece(const ProductArgs& args, const Share& share, uint8_t* stage,
                                             int columnBlock, To to) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto* x = reinterpret_cast<const uint8_t*>(args.x);
#pragma unroll
  for (int i = 0; i < T::kXVectors; i++) {
    const int at = i * kThreads + thread;
    const int rowTile = share.firstTile + at / kTileVectors;
    const bool valid = rowTile < share.endTile();
    const int64_t from =
        (static_cast<int64_t>(valid ? rowTile : 0) * args.columnBlocks + columnBlock) * kTileVectors +
        at % kTileVectors;
    to(stage + at * kVectorBytes, x + from * kVectorBytes, valid);
  }
  // Each warp brings its own weights.
  const int lane = laneOfThread();
  const int firstBlock = static_cast<int>(blockIdx.x) * T::kRowBlocks + warpOfThread() * T::kWarpBlocks;
  uint8_t* blocks = stage + T::kXBytes + warpOfThread() * T::kWarpBlocks * T::kBlockBytes;
#pragma unroll
  for (int i = 0; i < T::kWarpBlocks; i++) {
    const bool valid = firstBlock + i < args.rowBlocks;
    const uint8_t* from =
        share.weights + (static_cast<int64_t>(valid ? firstBlock + i : 0) * args.columnBlocks + columnBlock) *
                            args.blockBytes;
#pragma unroll
    for (int vector = 0; vector < T::kDataVectors; vector++) {
      const int offset = (vector * kWarp + lane) * kVectorBytes;
      to(blocks + i * T::kBlockBytes + offset, from + offset, valid);
    }
  }
  if constexpr (T::kHasScales) {
    // A vector per lane: that many groups of that many blocks.
    const int block = lane / kMaxGroupsPerBlock;
    const int group = lane % kMaxGroupsPerBlock;
    if (block < T::kWarpBlocks && group < args.groupsPerBlock) {
      const bool valid = firstBlock + block < args.rowBlocks;
      const int offset = blockDataBytes(T::kType) + group * kVectorBytes;
      const int64_t index =
          static_cast<int64_t>(valid ? firstBlock + block : 0) * args.columnBlocks + columnBlock;
      to(blocks + block * T::kBlockBytes + offset, share.weights + index * args.blockBytes + offset, valid);
    }
  }
}

// Adds the products of one stage.
template <class T>
__device__ __forceinline__ void multiplyStage(ProductSums<T>& sums, const uint8_t* stage,
                                              const ScaleSelectors& selectors, int groups) {
  const int lane = laneOfThread();
  const uint8_t* blocks = stage + T::kXBytes + warpOfThread() * T::kWarpBlocks * T::kBlockBytes;
  const auto vectorAt = [&](const uint8_t* from, int vector) {
    return reinterpret_cast<const uint4*>(from)[vector * kWarp + lane];
  };
  uint4 vectors[T::kWarpBlocks];
  uint2 scales[T::kWarpBlocks] = {};
  if constexpr (T::kType != WeightType::kStored) {
#pragma unroll
    for (int j = 0; j < T::kWarpBlocks; j++) {
      scales[j] = *reinterpret_cast<const uint2*>(blocks + j * T::kBlockBytes + blockDataBytes(T::kType) +
                                                  scaleVector(lane, groups));
    }
  }
  constexpr int kPerVector = quartersPerVector(T::kType);
#pragma unroll
  for (int quarter = 0; quarter < kQuarters; quarter++) {
    uint4 x[T::kRowTiles];
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) x[i] = vectorAt(stage, i * kQuarters + quarter);
#pragma unroll
    for (int pair = 0; pair < T::kPairs; pair++) {
      uint32_t weights[2][kQuarterSteps][2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int j = 2 * pair + i;
        if (quarter % kPerVector == 0) {
          vectors[j] = vectorAt(blocks + j * T::kBlockBytes, quarter / kPerVector);
        }
        dequantize<T::kType>(vectors[j], quarter, selectors.pair(scales[j], quarter), weights[i]);
      }
#pragma unroll
      for (int step = 0; step < kQuarterSteps; step++) {
#pragma unroll
        for (int i = 0; i < T::kRowTiles; i++) {
          multiplyStep<T::kPath>(sums.of[i][pair], weights[0][step], weights[1][step], x[i], step);
        }
      }
    }
  }
}

// Multiplies stage after stage; `total` gets every part when it is complete.
template <class T>
class Summing {
 public:
  __device__ __forceinline__ explicit Summing(const ProductArgs& args)
      : args_(args),
        selectors_(laneOfThread(), args.groupsPerBlock),
        left_(blocksPerPart(args.columnBlocks)) {
    total.fill(-0.0f);  // adding to it changes no bit
    part_.fill(0.0f);
  }
  __device__ __forceinline__ void take(const uint8_t* stage, bool last) {
    multiplyStage<T>(part_, stage, selectors_, args_.groupsPerBlock);
    if (--left_ > 0 && !last) return;
    total.add(part_);
    part_.fill(0.0f);
    left_ = blocksPerPart(args_.columnBlocks);
  }
  ProductSums<T> total;

 private:
  const ProductArgs& args_;
  const ScaleSelectors selectors_;
  ProductSums<T> part_;
  int left_;  // blocks of the part
};

// kAmpere: copies run ahead by kStages - 1 stages, past the registers.
template <class T>
__device__ __forceinline__ void sumAsync(Summing<T>& sums, const ProductArgs& args, const Share& share,
                                         uint8_t* shared) {
  const auto begin = [&](int columnBlock) {
    if (columnBlock < args.columnBlocks) {
      forEachPiece<T>(args, share, shared + columnBlock % T::kStages * T::kStageBytes, columnBlock,
                      [](void* to, const void* from, bool valid) { copyAsync16(to, from, valid); });
    }
    commitCopies();
  };
  for (int i = 0; i < T::kStages - 1; i++) begin(i);
  for (int i = 0; i < args.columnBlocks; i++) {
    waitCopies<T::kStages - 2>();
    // Now stage i is there for all, and stage i - 1, which the next copies overwrite, has been read by all.
    __syncthreads();
    begin(i + T::kStages - 1);
    sums.take(shared + i % T::kStages * T::kStageBytes, i + 1 == args.columnBlocks);
  }
}

// kTuring: the next stage waits in registers while this one is multiplied.
template <class T>
__device__ __forceinline__ void sumThroughRegisters(Summing<T>& sums, const ProductArgs& args,
                                                    const Share& share, uint8_t* shared) {
  constexpr int kPieces = T::kXVectors + T::kWarpBlocks * T::kDataVectors + (T::kHasScales ? 1 : 0);
  uint4 held[kPieces];
  const auto load = [&](int columnBlock) {
    int piece = 0;
    forEachPiece<T>(args, share, shared, columnBlock, [&](void*, const void* from, bool valid) {
      held[piece++] = valid ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
    });
  };
  const auto store = [&](int columnBlock) {
    int piece = 0;
    forEachPiece<T>(args, share, shared + columnBlock % 2 * T::kStageBytes, columnBlock,
                    [&](void* to, const void*, bool) { *static_cast<uint4*>(to) = held[piece++]; });
  };
  load(0);
  store(0);
  __syncthreads();
  for (int i = 0; i < args.columnBlocks; i++) {
    const bool more = i + 1 < args.columnBlocks;
    if (more) load(i + 1);
    sums.take(shared + i % 2 * T::kStageBytes, !more);
    // Into the stage before this one, which all have left: they passed the last barrier.
    if (more) store(i + 1);
    __syncthreads();
  }
}

template <class T>
__device__ __forceinline__ void multiply(const ProductArgs& args, const Share& share) {
  uint8_t* shared = sharedMemory();
  Summing<T> sums(args);
  if constexpr (T::kPath == Path::kAmpere) {
    sumAsync<T>(sums, args, share, shared);
  } else {
    sumThroughRegisters<T>(sums, args, share, shared);
  }
  const int firstPair = (static_cast<int>(blockIdx.x) * kWarps + warpOfThread()) * T::kPairs;
  ProductSums<T>::forEach([&](int i, int j, int c) {
    storeSum(args, share, sums.total.of[i][j][c], share.firstTile + i, firstPair + j, laneOfThread(), c);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) wideKernel(const ProductArgs args) {
  enterKernel();
  multiply<T>(args, shareOf(args, T::kRowTiles));
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    groupedWideKernel(const ProductArgs args, const GroupedRows grouped) {
  enterKernel();
  const Share share = shareOf(grouped);
  if (share.endRow > 0) multiply<T>(args, share);
}

// Shared memory of a block is at most 64 KB on sm_75 and 99 KB on sm_86 and sm_89.
template <Path kPath, WeightType kType>
struct TileFor;
template <WeightType kType>
struct TileFor<Path::kAmpere, kType> {
  static constexpr bool kSmall = kType == WeightType::kInt4;
  using Type = Tile<Path::kAmpere, kType, 8, kSmall ? 2 : 1, kSmall ? 3 : 2>;
};
template <WeightType kType>
struct TileFor<Path::kTuring, kType> {
  using Type = Tile<Path::kTuring, kType, 8, 1, 2>;
};

template <class T>
dim3 gridOf(const ProductArgs& args, const GroupedRows* grouped) {
  return dim3{static_cast<unsigned int>((args.rowBlocks + T::kRowBlocks - 1) / T::kRowBlocks),
              rowTilesOfGrid(args, T::kRowTiles, grouped), 1};
}

template <Path kPath, WeightType kType>
void start(cudaStream_t stream, const ProductArgs& args, const GroupedRows* grouped) {
  using T = typename TileFor<kPath, kType>::Type;
  if constexpr (kPath == Path::kTuring) {
    if (grouped == nullptr) {
      return launch(wideKernel<T>, gridOf<T>(args, grouped), kThreads, T::kSharedBytes, stream, args);
    }
  }
  launch(groupedWideKernel<T>, gridOf<T>(args, grouped), kThreads, T::kSharedBytes, stream, args, *grouped);
}

template <Path kPath>
void startOfPath(cudaStream_t stream, WeightType type, const ProductArgs& args, const GroupedRows* grouped) {
  switch (type) {
    case WeightType::kInt4:
      return start<kPath, WeightType::kInt4>(stream, args, grouped);
    case WeightType::kInt8:
      return start<kPath, WeightType::kInt8>(stream, args, grouped);
    case WeightType::kStored:
      return start<kPath, WeightType::kStored>(stream, args, grouped);
  }
}

template <Path kPath, WeightType kType>
void prepare() {
  using T = typename TileFor<kPath, kType>::Type;
  if constexpr (kPath == Path::kTuring) {
    cudaFuncSetAttribute(wideKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  }
  cudaFuncSetAttribute(groupedWideKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
}

template <Path kPath>
void preparePath() {
  prepare<kPath, WeightType::kStored>();
  prepare<kPath, WeightType::kInt8>();
  prepare<kPath, WeightType::kInt4>();
}

}  // namespace

void prepareWideProducts(Path path) {
  if (path == Path::kAmpere) return preparePath<Path::kAmpere>();
  preparePath<Path::kTuring>();
}

void wideProduct(cudaStream_t stream, Path path, WeightType type, const ProductArgs& args,
                 const GroupedRows* grouped) {
  if (path == Path::kAmpere) return startOfPath<Path::kAmpere>(stream, type, args, grouped);
  startOfPath<Path::kTuring>(stream, type, args, grouped);
}

}  // namespace glm_relay::cuda
