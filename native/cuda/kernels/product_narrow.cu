#include <type_traits>

#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/product_store.h"
#include "cuda/kernels/product_sums.h"

namespace glm_relay::cuda {

namespace {

constexpr int kThreads = kParts * kWarp;
// Rows of blocks that a matrix instruction takes: 16 outputs.
constexpr int kPair = 2;
constexpr int kPieceBytes = kWarp * kVectorBytes;

// What a block of threads computes: every part of the columns by one warp, for kPairs pairs of rows of
// blocks, kColumnBlocks blocks of each row at a time.
template <Path kPath_, WeightType kType_, int kRowTiles_, int kPairs_, int kColumnBlocks_, int kStages_,
          int kBlocksPerProcessor_>
struct Tile {
  static constexpr Path kPath = kPath_;
  static constexpr WeightType kType = kType_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kPairs = kPairs_;
  static constexpr int kColumnBlocks = kColumnBlocks_;
  // Of weights that a warp has in shared memory or on their way there.
  static constexpr int kStages = kStages_;
  // Registers are shared out so that this many blocks of threads find room: as many as do without spills.
  static constexpr int kBlocksPerProcessor = kBlocksPerProcessor_;

  static constexpr bool kFewRegisters = kRowTiles == 4;
  // Of the rows of many experts, 32 at a time were never the fastest.
  static constexpr bool kIsGrouped = kRowTiles <= 2;
  static constexpr int kBlocks = kPair * kPairs;
  // What a stage has of one row of blocks: blocks that lie one behind the other, in pieces of a vector per
  // lane.
  static constexpr int kRunBytes = kColumnBlocks * maxBlockBytes(kType);
  static constexpr int kPieces = (kRunBytes + kPieceBytes - 1) / kPieceBytes;
  static constexpr int kStageBytes = kBlocks * kRunBytes;
  // Quarters of x that a warp holds or has asked for: most come from the L2 cache.
  static constexpr int kRing = kRowTiles == 2 && kPairs == 1 ? 2 : kQuarters;
  static_assert(kQuarters % kRing == 0, "a quarter has the same place in every block");
  static constexpr int kSums = kRowTiles * kPairs * 4;  // of a lane
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static_assert(kWarpBytes >= kSums * kWarp * static_cast<int>(sizeof(float)),
                "sums take the weights' place");
  static constexpr int kSharedBytes = kParts * kWarpBytes;
};

// The weights, stage after stage, on their way through shared memory. A warp copies for itself.
template <class T>
class Weights {
 public:
  // `shared` is the warp's.
  __device__ __forceinline__ Weights(const ProductArgs& args, const Share& share, uint8_t* shared, int begin,
                                     int end)
      : blockBytes_(args.blockBytes),
        place_(sharedPlace(shared)),
        left_((end - begin) * args.blockBytes - laneOfThread() * kVectorBytes) {
#pragma unroll
    for (int i = 0; i < T::kBlocks; i++) {
      // Blocks behind the last are computed like it, and not stored.
      const int rowBlock = smaller(static_cast<int>(blockIdx.x) * T::kBlocks + i, args.rowBlocks - 1);
      from_[i] = share.weights +
                 (static_cast<int64_t>(rowBlock) * args.columnBlocks + begin) * args.blockBytes +
                 laneOfThread() * kVectorBytes;
    }
    if constexpr (T::kPath == Path::kAmpere) {
      for (int i = 0; i < T::kStages - 1; i++) beginCopy();
    } else {
      load();
    }
  }

  // Brings the next stage; it stays until the one after it is asked for.
  __device__ __forceinline__ void advance() {
    reading_ = next(reading_);
    if constexpr (T::kPath == Path::kAmpere) {
      waitCopies<T::kStages - 2>();
      // What all lanes have copied is there, and all have read the stage before, which comes next.
      __syncwarp();
      beginCopy();
    } else {
      store();
      __syncwarp();
      load();
    }
  }

  __device__ __forceinline__ uint4 vector(int block, int column, int index) const {
    return load16(place_ + (reading_ + laneOfThread() * kVectorBytes + column * blockBytes_ +
                            (block * T::kRunBytes + index * kPieceBytes)));
  }
  __device__ __forceinline__ uint2 scales(int block, int column, int scaleVector) const {
    if constexpr (T::kType == WeightType::kStored) {
      return {};
    } else {
      return load8(place_ + (reading_ + scaleVector + column * blockBytes_ +
                             (block * T::kRunBytes + blockDataBytes(T::kType))));
    }
  }

 private:
  static __device__ __forceinline__ int next(int stage) {
    return stage + T::kStageBytes == T::kWarpBytes ? 0 : stage + T::kStageBytes;
  }
  // bring(block, piece, offset, isThere): the vectors of a stage that this lane brings.
  template <class Bring>
  __device__ __forceinline__ void forEachVector(Bring bring) const {
    const int bytes = smaller(left_, T::kColumnBlocks * blockBytes_ - laneOfThread() * kVectorBytes);
#pragma unroll
    for (int piece = 0; piece < T::kPieces; piece++) {
#pragma unroll
      for (int block = 0; block < T::kBlocks; block++) {
        bring(block, piece, piece * kPieceBytes, piece * kPieceBytes < bytes);
      }
    }
  }
  __device__ __forceinline__ void advanceFrom() {
    const int bytes = T::kColumnBlocks * blockBytes_;
#pragma unroll
    for (int block = 0; block < T::kBlocks; block++) from_[block] += bytes;
    left_ -= bytes;
  }

  __device__ __forceinline__ void beginCopy() {
    const SharedPlace to = place_ + (writing_ + laneOfThread() * kVectorBytes);
    forEachVector([&](int block, int, int offset, bool isThere) {
      copyAsync16If(isThere, to + (block * T::kRunBytes + offset), from_[block] + offset);
    });
    commitCopies();
    advanceFrom();
    writing_ = next(writing_);
  }

  __device__ __forceinline__ void load() {
    forEachVector([&](int block, int piece, int offset, bool isThere) {
      if (isThere) held_[block][piece] = load16Once(from_[block] + offset);
    });
    advanceFrom();
  }
  // Lanes may still read the scales of the stage before: it has another place.
  __device__ __forceinline__ void store() {
    const int lane = laneOfThread() * kVectorBytes;
#pragma unroll
    for (int piece = 0; piece < T::kPieces; piece++) {
#pragma unroll
      for (int block = 0; block < T::kBlocks; block++) {
        const int offset = piece * kPieceBytes;
        if (offset + lane < T::kRunBytes)
          store16(place_ + (reading_ + lane + block * T::kRunBytes + offset), held_[block][piece]);
      }
    }
  }

  const int blockBytes_;
  const SharedPlace place_;
  const uint8_t* from_[T::kBlocks];
  int left_;  // bytes of a row of blocks, from this lane's vector on, that nobody has asked for
  // Stages, as offsets.
  int reading_ = T::kWarpBytes - T::kStageBytes;
  int writing_ = 0;
  uint4 held_[T::kBlocks][T::kPieces];  // kTuring
};

// One warp's part of the columns. `shared`: the warp's.
template <class T>
__device__ __forceinline__ void sumPart(ProductSums<T>& sums, const ProductArgs& args, const Share& share,
                                        uint8_t* shared) {
  const int lane = laneOfThread();
  const int perPart = blocksPerPart(args.columnBlocks);
  const int begin = smaller(args.columnBlocks, warpOfThread() * perPart);
  const int end = smaller(args.columnBlocks, begin + perPart);
  const ScaleSelectors selectors(lane, args.groupsPerBlock);
  const int scalesAt = scaleVector(lane, args.groupsPerBlock);
  Weights<T> weights(args, share, shared, begin, end);

  awaitPrevious();
  const uint8_t* x[T::kRowTiles];
  bool isRow[T::kRowTiles];
#pragma unroll
  for (int i = 0; i < T::kRowTiles; i++) {
    const int64_t rowTile = share.firstTile + i;
    // Rows that are nobody's are not read: with few rows x finds room in the L1 cache then.
    isRow[i] = (share.firstTile + i) * kTileRows + lane / 4 < share.endRow;
    x[i] = reinterpret_cast<const uint8_t*>(args.x) +
           (rowTile * args.columnBlocks + begin) * (kQuarters * kPieceBytes) + lane * kVectorBytes;
  }
  // Quarters are loaded while those before them are multiplied. Behind the last one nobody uses what comes.
  uint4 rows[T::kRing][T::kRowTiles] = {};
  const auto loadRows = [&](int quarter) {
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
      if (isRow[i]) rows[quarter % T::kRing][i] = load16(x[i] + quarter * kPieceBytes);
    }
  };
#pragma unroll
  for (int quarter = 0; quarter < T::kRing - 1; quarter++) loadRows(quarter);

#pragma unroll 1
  for (int block = begin; block < end; block += T::kColumnBlocks) {
    weights.advance();
#pragma unroll
    for (int column = 0; column < T::kColumnBlocks; column++) {
      if (column > 0 && block + column >= end) break;
      uint4 vectors[T::kBlocks];
      uint2 scales[T::kBlocks];
#pragma unroll
      for (int i = 0; i < T::kBlocks; i++) scales[i] = weights.scales(i, column, scalesAt);
      constexpr int kPerVector = quartersPerVector(T::kType);
#pragma unroll
      for (int quarter = 0; quarter < kQuarters; quarter++) {
        loadRows(column * kQuarters + quarter + T::kRing - 1);
#pragma unroll
        for (int pair = 0; pair < T::kPairs; pair++) {
          uint32_t fragments[kPair][kQuarterSteps][2];
#pragma unroll
          for (int i = 0; i < kPair; i++) {
            const int at = pair * kPair + i;
            if (quarter % kPerVector == 0) vectors[at] = weights.vector(at, column, quarter / kPerVector);
            dequantize<T::kType, T::kFewRegisters>(vectors[at], quarter, selectors.pair(scales[at], quarter),
                                                   fragments[i]);
          }
#pragma unroll
          for (int step = 0; step < kQuarterSteps; step++) {
#pragma unroll
            for (int i = 0; i < T::kRowTiles; i++) {
              multiplyStep<T::kPath>(sums.of[i][pair], fragments[0][step], fragments[1][step],
                                     rows[quarter % T::kRing][i], step);
            }
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) x[i] += T::kColumnBlocks * kQuarters * kPieceBytes;
  }
}

template <class T>
__device__ __forceinline__ void multiply(const ProductArgs& args, const Share& share) {
  uint8_t* shared = sharedMemory();
  const int lane = laneOfThread();
  // In the place of the warp's own weights: all lanes have read them before its last matrix instruction.
  const auto partial = [&](int part, int i) {
    return reinterpret_cast<float*>(shared + part * T::kWarpBytes) + i * kWarp + lane;
  };
  {
    ProductSums<T> sums;
    sums.fill(0.0f);
    sumPart<T>(sums, args, share, shared + warpOfThread() * T::kWarpBytes);
    beginNext();
#pragma unroll
    for (int i = 0; i < T::kSums; i++) {
      *partial(warpOfThread(), i) = sums.of[i / 4 / T::kPairs][i / 4 % T::kPairs][i % 4];
    }
  }
  __syncthreads();
  const int perPart = blocksPerPart(args.columnBlocks);
  const int parts = (args.columnBlocks + perPart - 1) / perPart;
#pragma unroll
  for (int i = warpOfThread(); i < T::kSums; i += kParts) {
    float sum = *partial(0, i);
    for (int part = 1; part < parts; part++) sum += *partial(part, i);
    storeSum(args, share, sum, share.firstTile + i / 4 / T::kPairs,
             static_cast<int>(blockIdx.x) * T::kPairs + i / 4 % T::kPairs, lane, i % 4);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksPerProcessor) narrowKernel(const ProductArgs args) {
  multiply<T>(args, shareOf(args, T::kRowTiles));
}

template <class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksPerProcessor)
    groupedNarrowKernel(const ProductArgs args, const GroupedRows grouped) {
  enterKernel();
  const Share share = shareOf(grouped);
  if (share.endRow > 0) multiply<T>(args, share);
}

template <class T>
void start(cudaStream_t stream, const ProductArgs& args, const GroupedRows* grouped) {
  const dim3 grid{static_cast<unsigned int>((args.rowBlocks + T::kBlocks - 1) / T::kBlocks),
                  rowTilesOfGrid(args, T::kRowTiles, grouped), 1};
  if (grouped == nullptr) return launch(narrowKernel<T>, grid, kThreads, T::kSharedBytes, stream, args);
  if constexpr (T::kIsGrouped) {
    launch(groupedNarrowKernel<T>, grid, kThreads, T::kSharedBytes, stream, args, *grouped);
  }
}

template <class T>
void prepare() {
  cudaFuncSetAttribute(narrowKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  if constexpr (T::kIsGrouped) {
    cudaFuncSetAttribute(groupedNarrowKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         T::kSharedBytes);
  }
}

// Of a matrix with so many rows of blocks there are warps enough when each has several pairs, which read x
// once for all of them.
constexpr int kManyRowBlocks = 1024;

// Calls `with` with the tile for so many row tiles of x, as an H200 is fastest with. 8 bits per weight lie in
// longer runs when two blocks come at a time; of 4 bits it is better to have more stages.
template <Path kPath, WeightType kType, class With>
void withTile(int rowTiles, int rowBlocks, With with) {
  if constexpr (kPath == Path::kTuring) {
    if (rowTiles == 1) return with(Tile<kPath, kType, 1, 1, 1, 2, 4>{});
    if (rowTiles == 2) return with(Tile<kPath, kType, 2, 1, 1, 2, 4>{});
    return with(Tile<kPath, kType, 4, 1, 1, 2, 3>{});
  } else {
    const bool isLarge = rowBlocks >= kManyRowBlocks;
    if (rowTiles == 1) {
      if constexpr (kType == WeightType::kInt4) return with(Tile<kPath, kType, 1, 1, 1, 4, 7>{});
      if constexpr (kType == WeightType::kInt8) return with(Tile<kPath, kType, 1, 1, 2, 2, 6>{});
      return with(Tile<kPath, kType, 1, 1, 1, 3, 7>{});
    }
    if (rowTiles == 2) {
      return isLarge ? with(Tile<kPath, kType, 2, 2, 1, 3, 3>{}) : with(Tile<kPath, kType, 2, 1, 1, 3, 6>{});
    }
    isLarge ? with(Tile<kPath, kType, 4, 2, 1, 3, 3>{}) : with(Tile<kPath, kType, 4, 1, 1, 3, 2>{});
  }
}

template <class With>
void withType(Path path, WeightType type, With with) {
  const auto ofPath = [&](auto ofType) {
    constexpr WeightType kType = decltype(ofType)::value;
    if (path == Path::kAmpere) {
      with(std::integral_constant<Path, Path::kAmpere>{}, std::integral_constant<WeightType, kType>{});
    } else {
      with(std::integral_constant<Path, Path::kTuring>{}, std::integral_constant<WeightType, kType>{});
    }
  };
  switch (type) {
    case WeightType::kInt4:
      return ofPath(std::integral_constant<WeightType, WeightType::kInt4>{});
    case WeightType::kInt8:
      return ofPath(std::integral_constant<WeightType, WeightType::kInt8>{});
    case WeightType::kStored:
      return ofPath(std::integral_constant<WeightType, WeightType::kStored>{});
  }
}

}  // namespace

void prepareNarrowProducts(Path path) {
  for (WeightType type : {WeightType::kStored, WeightType::kInt8, WeightType::kInt4}) {
    withType(path, type, [&](auto ofPath, auto ofType) {
      for (int rowTiles : {1, 2, 4}) {
        for (int rowBlocks : {1, kManyRowBlocks}) {
          withTile<decltype(ofPath)::value, decltype(ofType)::value>(
              rowTiles, rowBlocks, [](auto tile) { prepare<decltype(tile)>(); });
        }
      }
    });
  }
}

void narrowProduct(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args,
                   const GroupedRows* grouped) {
  withType(path, type, [&](auto ofPath, auto ofType) {
    withTile<decltype(ofPath)::value, decltype(ofType)::value>(
        rowTiles, args.rowBlocks, [&](auto tile) { start<decltype(tile)>(stream, args, grouped); });
  });
}

}  // namespace glm_relay::cuda
