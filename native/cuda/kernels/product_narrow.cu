#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/product_store.h"

namespace glm_relay::cuda {

namespace {

constexpr int kThreads = kParts * kWarp;
// Rows of blocks of a warp: 16 outputs.
constexpr int kPair = 2;

// What a block of threads computes: every part of the columns by one warp, for one pair of rows of blocks.
template <Path kPath_, WeightType kType_, int kRowTiles_>
struct Tile {
  static constexpr Path kPath = kPath_;
  static constexpr WeightType kType = kType_;
  static constexpr int kRowTiles = kRowTiles_;

  static constexpr int kVectors = vectorsPerLane(kType);
  // A pair of blocks, of which a warp has so many in shared memory or on their way there.
  static constexpr int kPairBytes = kPair * maxBlockBytes(kType);
  static constexpr int kStages = kPath == Path::kTuring ? 2 : kType == WeightType::kInt4 ? 6 : 4;
  // Quarters of x that a warp holds or has asked for.
  static constexpr int kRing = kRowTiles < 4 ? kQuarters : 2;
  static_assert(kQuarters % kRing == 0, "a quarter has the same place in every block");
  static constexpr int kSums = kRowTiles * 4;  // of a lane
  static constexpr int kWarpBytes = kStages * kPairBytes;
  static_assert(kWarpBytes >= kSums * kWarp * static_cast<int>(sizeof(float)),
                "sums take the weights' place");
  static constexpr int kSharedBytes = kParts * kWarpBytes;
  // Registers are shared out so that this many blocks of threads find room.
  static constexpr int kBlocksPerProcessor = kPath == Path::kTuring ? (kRowTiles == 4 ? 3 : 4)
                                             : kRowTiles == 1       ? 7
                                             : kRowTiles == 2       ? 5
                                                                    : 3;
};

// The weights of a pair, block after block, on their way through shared memory. A warp copies for itself, and
// a lane reads the values that it has copied, and the scales that others have.
template <class T>
class Weights {
 public:
  // `shared` is the warp's.
  __device__ __forceinline__ Weights(const ProductArgs& args, const Share& share, uint8_t* shared, int begin,
                                     int end)
      : bringsScales_(T::kType != WeightType::kStored && laneOfThread() < args.groupsPerBlock),
        blockBytes_(args.blockBytes),
        values_(sharedPlace(shared) + laneOfThread() * kVectorBytes),
        scales_(sharedPlace(shared) + blockDataBytes(T::kType) +
                scaleVector(laneOfThread(), args.groupsPerBlock)),
        left_(end - begin) {
#pragma unroll
    for (int i = 0; i < kPair; i++) {
      // Blocks behind the last are computed like it, and not stored.
      const int rowBlock = smaller(static_cast<int>(blockIdx.x) * kPair + i, args.rowBlocks - 1);
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

  // Brings the next block; it stays until the one after it is asked for.
  __device__ __forceinline__ void advance() {
    reading_ = next(reading_);
    if constexpr (T::kPath == Path::kAmpere) {
      waitCopies<T::kStages - 2>();
      // What all lanes have copied is there, and all have read the block before, which comes next.
      __syncwarp();
      beginCopy();
    } else {
      store();
      __syncwarp();
      load();
    }
  }

  __device__ __forceinline__ uint4 vector(int block, int index) const {
    return load16(values_ + (reading_ + block * kBlockBytes + index * kWarp * kVectorBytes));
  }
  __device__ __forceinline__ uint2 scales(int block) const {
    if constexpr (T::kType == WeightType::kStored) {
      return {};
    } else {
      return load8(scales_ + (reading_ + block * kBlockBytes));
    }
  }

 private:
  static constexpr int kBlockBytes = maxBlockBytes(T::kType);

  static __device__ __forceinline__ int next(int stage) {
    return stage + T::kPairBytes == T::kWarpBytes ? 0 : stage + T::kPairBytes;
  }
  // bring(index, offset): the vectors of a block that this lane brings.
  template <class Bring>
  __device__ __forceinline__ void forEachVector(Bring bring) const {
#pragma unroll
    for (int i = 0; i < T::kVectors; i++) bring(i, i * kWarp * kVectorBytes);
    if (bringsScales_) bring(T::kVectors, blockDataBytes(T::kType));
  }

  __device__ __forceinline__ void beginCopy() {
    if (left_ > 0) {
#pragma unroll
      for (int block = 0; block < kPair; block++) {
        forEachVector([&](int, int offset) {
          copyAsync16(values_ + (writing_ + block * kBlockBytes + offset), from_[block] + offset);
        });
        from_[block] += blockBytes_;
      }
    }
    commitCopies();
    left_--;
    writing_ = next(writing_);
  }

  __device__ __forceinline__ void load() {
    if (left_-- <= 0) return;
#pragma unroll
    for (int block = 0; block < kPair; block++) {
      forEachVector([&](int i, int offset) { held_[block][i] = load16Once(from_[block] + offset); });
      from_[block] += blockBytes_;
    }
  }
  // Lanes may still read the scales of the block before: it has another stage.
  __device__ __forceinline__ void store() {
#pragma unroll
    for (int block = 0; block < kPair; block++) {
      forEachVector([&](int i, int offset) {
        store16(values_ + (reading_ + block * kBlockBytes + offset), held_[block][i]);
      });
    }
  }

  const bool bringsScales_;
  const int blockBytes_;
  const SharedPlace values_;
  const SharedPlace scales_;
  const uint8_t* from_[kPair];
  int left_;  // blocks that nobody has asked for
  // Stages, as offsets.
  int reading_ = T::kWarpBytes - T::kPairBytes;
  int writing_ = 0;
  uint4 held_[kPair][T::kVectors + 1];  // kTuring
};

template <int kRowTiles>
struct Sums {
  float of[kRowTiles][4] = {};
};

// One warp's part of the columns. `shared`: the warp's.
template <class T>
__device__ __forceinline__ void sumPart(Sums<T::kRowTiles>& sums, const ProductArgs& args, const Share& share,
                                        uint8_t* shared) {
  const int lane = laneOfThread();
  const int perPart = blocksPerPart(args.columnBlocks);
  const int begin = smaller(args.columnBlocks, warpOfThread() * perPart);
  const int end = smaller(args.columnBlocks, begin + perPart);
  const ScaleSelectors selectors(lane, args.groupsPerBlock);
  Weights<T> weights(args, share, shared, begin, end);

  constexpr int kQuarterBytes = kWarp * kVectorBytes;
  const uint8_t* x[T::kRowTiles];
  bool isRow[T::kRowTiles];
#pragma unroll
  for (int i = 0; i < T::kRowTiles; i++) {
    const int64_t rowTile = smaller(share.firstTile + i, share.endTile() - 1);
    // Rows that are nobody's are not read: with few rows x finds room in the L1 cache then.
    isRow[i] = (share.firstTile + i) * kTileRows + lane / 4 < share.endRow;
    x[i] = reinterpret_cast<const uint8_t*>(args.x) +
           (rowTile * args.columnBlocks + begin) * (kQuarters * kQuarterBytes) + lane * kVectorBytes;
  }
  // Quarters are loaded while those before them are multiplied. Behind the last one nobody uses what comes.
  uint4 rows[T::kRing][T::kRowTiles] = {};
  const auto loadRows = [&](int quarter) {
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
      if (isRow[i]) rows[quarter % T::kRing][i] = load16(x[i] + quarter * kQuarterBytes);
    }
  };
#pragma unroll
  for (int quarter = 0; quarter < T::kRing - 1; quarter++) loadRows(quarter);

#pragma unroll 1
  for (int block = begin; block < end; block++) {
    weights.advance();
    uint4 vectors[kPair];
    const uint2 scales[kPair] = {weights.scales(0), weights.scales(1)};
    constexpr int kPerVector = quartersPerVector(T::kType);
#pragma unroll
    for (int quarter = 0; quarter < kQuarters; quarter++) {
      loadRows(quarter + T::kRing - 1);
      uint32_t fragments[kPair][kQuarterSteps][2];
#pragma unroll
      for (int i = 0; i < kPair; i++) {
        if (quarter % kPerVector == 0) vectors[i] = weights.vector(i, quarter / kPerVector);
        dequantize<T::kType>(vectors[i], quarter, selectors.pair(scales[i], quarter), fragments[i]);
      }
#pragma unroll
      for (int step = 0; step < kQuarterSteps; step++) {
#pragma unroll
        for (int i = 0; i < T::kRowTiles; i++) {
          multiplyStep<T::kPath>(sums.of[i], fragments[0][step], fragments[1][step],
                                 rows[quarter % T::kRing][i], step);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) x[i] += kQuarters * kQuarterBytes;
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
    Sums<T::kRowTiles> sums;
    sumPart<T>(sums, args, share, shared + warpOfThread() * T::kWarpBytes);
#pragma unroll
    for (int i = 0; i < T::kSums; i++) *partial(warpOfThread(), i) = sums.of[i / 4][i % 4];
  }
  __syncthreads();
  const int perPart = blocksPerPart(args.columnBlocks);
  const int parts = (args.columnBlocks + perPart - 1) / perPart;
#pragma unroll
  for (int i = warpOfThread(); i < T::kSums; i += kParts) {
    float sum = *partial(0, i);
    for (int part = 1; part < parts; part++) sum += *partial(part, i);
    storeSum(args, share, sum, share.firstTile + i / 4, static_cast<int>(blockIdx.x), lane, i % 4);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksPerProcessor) narrowKernel(const ProductArgs args) {
  multiply<T>(args, shareOf(args, T::kRowTiles));
}

template <class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksPerProcessor)
    groupedNarrowKernel(const ProductArgs args, const GroupedRows grouped) {
  const Share share = shareOf(grouped);
  if (share.endRow > 0) multiply<T>(args, share);
}

template <class T>
void start(cudaStream_t stream, const ProductArgs& args, const GroupedRows* grouped) {
  const dim3 grid{static_cast<unsigned int>((args.rowBlocks + kPair - 1) / kPair),
                  rowTilesOfGrid(args, T::kRowTiles, grouped), 1};
  if (grouped == nullptr) return launch(narrowKernel<T>, grid, kThreads, T::kSharedBytes, stream, args);
  launch(groupedNarrowKernel<T>, grid, kThreads, T::kSharedBytes, stream, args, *grouped);
}

template <class T>
void prepare() {
  cudaFuncSetAttribute(narrowKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  cudaFuncSetAttribute(groupedNarrowKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
}

template <Path kPath, WeightType kType>
void startOfType(cudaStream_t stream, int rowTiles, const ProductArgs& args, const GroupedRows* grouped) {
  if (rowTiles == 1) return start<Tile<kPath, kType, 1>>(stream, args, grouped);
  if (rowTiles == 2) return start<Tile<kPath, kType, 2>>(stream, args, grouped);
  start<Tile<kPath, kType, 4>>(stream, args, grouped);
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

template <Path kPath, WeightType kType>
void prepareType() {
  prepare<Tile<kPath, kType, 1>>();
  prepare<Tile<kPath, kType, 2>>();
  prepare<Tile<kPath, kType, 4>>();
}

template <Path kPath>
void preparePath() {
  prepareType<kPath, WeightType::kStored>();
  prepareType<kPath, WeightType::kInt8>();
  prepareType<kPath, WeightType::kInt4>();
}

}  // namespace

void prepareNarrowProducts(Path path) {
  if (path == Path::kAmpere) preparePath<Path::kAmpere>();
  preparePath<Path::kTuring>();
}

void narrowProduct(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args,
                   const GroupedRows* grouped) {
  if (path == Path::kAmpere) return startOfPath<Path::kAmpere>(stream, type, rowTiles, args, grouped);
  startOfPath<Path::kTuring>(stream, type, rowTiles, args, grouped);
}

}  // namespace glm_relay::cuda
