#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/product_sums.h"
#include "cuda/kernels/wider_outputs.h"
#include "cuda/kernels/wider_tile.h"

namespace glm_relay::cuda {

namespace {

// A quarter's weights of a warp, ready for the matrix instructions.
template <class T>
struct Fragments {
  uint32_t of[T::kWarpBlocks][kQuarterSteps][2];
};

// The weights of a warp on their way from shared memory to fragments.
template <class T>
class Dequantizing {
 public:
  __device__ __forceinline__ Dequantizing(const ProductArgs& args, SharedPlace blocks)
      : groups_(args.groupsPerBlock),
        values_(blocks + laneOfThread() * kVectorBytes),
        scales_(blocks + (T::kDataBytes + laneOfThread() / 4 * groups_ * kScaleBytes)) {}

  // Reads what a quarter of a stage needs and the one before it has not read; `part`: which stage of a block.
  __device__ __forceinline__ void load(int stage, int part, int quarter) {
    constexpr int kPerVector = quartersPerVector(T::kType);
#pragma unroll
    for (int i = 0; i < T::kWarpBlocks; i++) {
      const int block = stage + i * T::kBlockBytes;
      if (quarter % kPerVector == 0) {
        vectors_[i] = load16(values_ + (block + quarter / kPerVector * kQuarterBytes));
      }
      if (T::kHasScales) {
        const int group = (part * T::kStageQuarters + quarter) * groups_ / kQuarters;
        scaleOf_[i] = load2(scales_ + (group * kScaleBytes + block));
      }
    }
  }
  __device__ __forceinline__ void dequantizeBlock(Fragments<T>& to, int i, int quarter) const {
    const uint32_t twice = __byte_perm(scaleOf_[i], 0, 0x1010u);
    dequantize<T::kType, T::kFewRegisters>(vectors_[i], quarter, twice, to.of[i]);
  }

 private:
  static constexpr int kScaleBytes = 2;

  const int groups_;
  const SharedPlace values_;
  const SharedPlace scales_;
  uint4 vectors_[T::kWarpBlocks];
  uint32_t scaleOf_[T::kWarpBlocks] = {};
};

template <class T>
__device__ __forceinline__ void multiply(const ProductArgs& args, const Share& share) {
  const SharedPlace shared = sharedPlace(sharedMemory());
  const int outputWarp = warpOfThread() % T::kOutputWarps;
  const int rowWarp = warpOfThread() / T::kOutputWarps;
  const SharedPlace xPlace =
      shared + (rowWarp * T::kRowTiles * T::kStageQuarters * kQuarterBytes + laneOfThread() * kVectorBytes);
  WiderCopies<T> copies(args, share, shared);
  Dequantizing<T> weights(args, shared + (T::kXBytes + outputWarp * T::kWarpBlocks * T::kBlockBytes));

  // Stages, as offsets: of x the one that is multiplied, of weights that one, the next and the one after it.
  int x = 0;
  int here = 0;
  int next = T::kWeightStageBytes;
  int free = 2 * T::kWeightStageBytes;
  // Behind the last columns they come again, and nobody uses them.
  const auto advanceWeights = [&](int block) {
    if (block < args.columnBlocks) copies.advanceWeights(args.blockBytes);
  };
#pragma unroll
  for (int i = 0; i < WiderCopies<T>::kXPieces; i++) copies.copyX(i, 0);
#pragma unroll
  for (int stage = 0; stage < 2; stage++) {
    const int at = stage * T::kWeightStageBytes;
#pragma unroll
    for (int i = 0; i < WiderCopies<T>::kWeightPieces; i++) {
      copies.copyWeights(i, at, stage % T::kStagesPerBlock);
    }
    if (T::kHasScales) copies.copyScales(at);
    if (stage % T::kStagesPerBlock + 1 == T::kStagesPerBlock) advanceWeights(stage / T::kStagesPerBlock + 1);
  }
  commitCopies();
  waitCopies<0>();
  __syncthreads();

  // A quarter's fragments are made while those of the one before it are multiplied.
  Fragments<T> fragments[2];
  weights.load(0, 0, 0);
#pragma unroll
  for (int i = 0; i < T::kWarpBlocks; i++) weights.dequantizeBlock(fragments[0], i, 0);

  constexpr int kStages = T::kStagesPerBlock;
  const int stages = args.columnBlocks * kStages;
  const auto addStage = [&](ProductSums<T>& sums, int stage) {
    const int part = stage % kStages;
    if (stage + 1 < stages) copies.advanceX();
    copies.recompute();
    const auto copyPiece = [&](int piece) {
      if (piece < WiderCopies<T>::kXPieces) {
        copies.copyX(piece, T::kXStageBytes - x);
      } else if (piece < WiderCopies<T>::kXPieces + WiderCopies<T>::kWeightPieces) {
        copies.copyWeights(piece - WiderCopies<T>::kXPieces, free, part);
      } else if (piece < WiderCopies<T>::kPieces) {
        copies.copyScales(free);
      }
    };
    constexpr int kGroups = T::kStageQuarters * T::kGroups;
    // Copies begin early in a stage, but not all at once.
    constexpr int kPiecesPerGroup = 2 * T::kGroupTiles;
    static_assert(kPiecesPerGroup * kGroups >= WiderCopies<T>::kPieces, "all pieces are copied");
    uint4 rows[2][T::kGroupTiles];
    const auto loadRows = [&](int group) {
#pragma unroll
      for (int i = 0; i < T::kGroupTiles; i++) {
        const int tile = group % T::kGroups * T::kGroupTiles + i;
        const int vector = tile * T::kStageQuarters + group / T::kGroups;
        rows[group % 2][i] = load16(xPlace + (x + vector * kQuarterBytes));
      }
    };
    loadRows(0);
#pragma unroll
    for (int group = 0; group < kGroups; group++) {
      if (group + 1 < kGroups) loadRows(group + 1);
      const int quarter = group / T::kGroups;
      const int inQuarter = group % T::kGroups;
      // The last quarter of a stage makes ready the first one of the next.
      const bool crosses = quarter + 1 == T::kStageQuarters;
      const int nextQuarter = crosses ? 0 : quarter + 1;
      if (inQuarter == 0) {
        weights.load(crosses ? next : here, crosses ? (part + 1) % kStages : part, nextQuarter);
      }
#pragma unroll
      for (int i = 0; i < kPiecesPerGroup; i++) copyPiece(group * kPiecesPerGroup + i);
#pragma unroll
      for (int step = 0; step < kQuarterSteps; step++) {
#pragma unroll
        for (int i = 0; i < T::kGroupTiles; i++) {
#pragma unroll
          for (int pair = 0; pair < T::kPairs; pair++) {
            const Fragments<T>& ready = fragments[quarter % 2];
            multiplyStep<Path::kAmpere>(sums.of[inQuarter * T::kGroupTiles + i][pair],
                                        ready.of[2 * pair][step], ready.of[2 * pair + 1][step],
                                        rows[group % 2][i], step);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < T::kWarpBlocks; i++) {
        // Spread over the groups behind the first one, which the vectors come in.
        if (1 + i * (T::kGroups - 1) / T::kWarpBlocks == inQuarter) {
          weights.dequantizeBlock(fragments[(quarter + 1) % 2], i, nextQuarter);
        }
      }
    }
    commitCopies();
    waitCopies<0>();
    // Now the next stage is there for all, and all have read this one, whose place the next copies take.
    __syncthreads();
    x = T::kXStageBytes - x;
    const int read = here;
    here = next;
    next = free;
    free = read;
    // What the next stage copies begins a block.
    if (part + 1 == kStages) advanceWeights(stage / kStages + 1 + 2 / kStages);
  };

  const int perPart = blocksPerPart(args.columnBlocks);
  ProductSums<T> total;
  total.fill(-0.0f);  // adding to it changes no bit
  for (int begin = 0; begin < args.columnBlocks; begin += perPart) {
    ProductSums<T> sums;
    sums.fill(0.0f);
    const int end = smaller(begin + perPart, args.columnBlocks);
#pragma unroll 1
    for (int stage = begin * kStages; stage < end * kStages; stage++) addStage(sums, stage);
    if constexpr (T::kKeepsTotal) {
      total.add(sums);
    } else {
      const WiderOutputs<T> outputs(args, share);
      if (begin > 0) outputs.add(sums);
      if (end < args.columnBlocks) {
        outputs.keep(sums);
        continue;
      }
      // Sums of other lanes may wait in the place of this one's outputs.
      __syncwarp();
      outputs.store(sums);
    }
  }
  if constexpr (T::kKeepsTotal) WiderOutputs<T>(args, share).store(total);
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerProcessor) widerKernel(const ProductArgs args) {
  enterKernel();
  multiply<T>(args, widerShareOf<T>(args));
}

// Four warps of 32 outputs, for 128 rows or 64.
template <WeightType kType, bool kHalf>
using TileFor = WiderTile<kType, 2, kHalf ? 8 : 16, 4, 1>;

template <class T>
void prepare() {
  cudaFuncSetAttribute(widerKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
}

template <WeightType kType>
void prepareType() {
  prepare<TileFor<kType, false>>();
  prepare<TileFor<kType, true>>();
}

template <class T>
void startTile(cudaStream_t stream, const ProductArgs& args) {
  const dim3 grid{rowTilesOfGrid(args, T::kBlockTiles, nullptr),
                  static_cast<unsigned int>((args.rowBlocks + T::kRowBlocks - 1) / T::kRowBlocks), 1};
  launch(widerKernel<T>, grid, T::kThreads, T::kSharedBytes, stream, args);
}

template <WeightType kType>
void start(cudaStream_t stream, int rows, const ProductArgs& args) {
  if (rows == TileFor<kType, true>::kBlockTiles * kTileRows) {
    return startTile<TileFor<kType, true>>(stream, args);
  }
  startTile<TileFor<kType, false>>(stream, args);
}

}  // namespace

void prepareWiderProducts() {
  prepareType<WeightType::kStored>();
  prepareType<WeightType::kInt8>();
  prepareType<WeightType::kInt4>();
}

void widerProduct(cudaStream_t stream, WeightType type, int rows, const ProductArgs& args) {
  switch (type) {
    case WeightType::kInt4:
      return start<WeightType::kInt4>(stream, rows, args);
    case WeightType::kInt8:
      return start<WeightType::kInt8>(stream, rows, args);
    case WeightType::kStored:
      return start<WeightType::kStored>(stream, rows, args);
  }
}

}  // namespace glm_relay::cuda
