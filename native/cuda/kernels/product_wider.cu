#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/product_store.h"

namespace glm_relay::cuda {

namespace {

constexpr int kQuarterBytes = kWarp * kVectorBytes;
// Row tiles of x that are multiplied in turn, so that no matrix instruction waits for the one before it.
constexpr int kGroupTiles = 2;

// What a block of threads computes: kOutputWarps x kRowWarps warps, each of them kPairs pairs of rows of
// blocks (16 outputs each) by kRowTiles tiles of x. A warp dequantizes for itself: the more rows it has, the
// fewer instructions are not matrix instructions.
template <WeightType kType_, int kPairs_, int kRowTiles_, int kOutputWarps_, int kRowWarps_,
          int kBlocksPerProcessor_>
struct Tile {
  static constexpr WeightType kType = kType_;
  static constexpr int kPairs = kPairs_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kOutputWarps = kOutputWarps_;
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kBlocksPerProcessor = kBlocksPerProcessor_;

  static constexpr int kThreads = kOutputWarps * kRowWarps * kWarp;
  static constexpr int kWarpBlocks = 2 * kPairs;
  static constexpr int kRowBlocks = kOutputWarps * kWarpBlocks;
  static constexpr int kBlockTiles = kRowWarps * kRowTiles;
  static_assert(kBlockTiles * kTileRows == rowsOf(ProductKernel::kWider), "the grid counts on it");

  // Quarters of a block that are copied together; of 4 bits a vector has all four.
  static constexpr int kStageQuarters = kType == WeightType::kInt4 ? 4 : 2;
  static constexpr int kStagesPerBlock = kQuarters / kStageQuarters;
  static constexpr int kStageVectors = kStageQuarters / quartersPerVector(kType);
  static constexpr bool kHasScales = kType != WeightType::kStored;
  static constexpr int kDataBytes = kStageVectors * kQuarterBytes;
  static constexpr int kBlockBytes = kDataBytes + (kHasScales ? kMaxGroupsPerBlock * kVectorBytes : 0);
  // Weights are there one stage before x: they are dequantized while the quarter before is multiplied.
  static constexpr int kXStageBytes = kBlockTiles * kStageQuarters * kQuarterBytes;
  static constexpr int kXBytes = 2 * kXStageBytes;
  static constexpr int kWeightStageBytes = kRowBlocks * kBlockBytes;
  static constexpr int kWeightBytes = 3 * kWeightStageBytes;
  static constexpr int kSharedBytes = kXBytes + kWeightBytes;
  static_assert(kSharedBytes <= 99 * 1024, "sm_86 and sm_89 have no more");

  static constexpr int kGroups = kRowTiles / kGroupTiles;  // of a quarter
};

// The copies of a thread, piece by piece: the same for every stage. What is behind the last row or output is
// computed like the last tile and row of blocks, and not stored.
template <class T>
class Copies {
 public:
  static constexpr int kXPieces = T::kXStageBytes / (T::kThreads * kVectorBytes);
  static constexpr int kWeightPieces = T::kRowBlocks * T::kDataBytes / (T::kThreads * kVectorBytes);
  static constexpr int kPieces = kXPieces + kWeightPieces + (T::kHasScales ? 1 : 0);

  __device__ __forceinline__ Copies(const ProductArgs& args, const Share& share, SharedPlace shared)
      : lastTile_(share.endTile() - 1 - share.firstTile),
        lastBlock_(args.rowBlocks - 1 - static_cast<int>(blockIdx.x) * T::kRowBlocks),
        tileBytes_(args.columnBlocks * kQuarters * kQuarterBytes),
        rowBlockBytes_(args.columnBlocks * args.blockBytes),
        bringsScales_(thread() < T::kRowBlocks * kMaxGroupsPerBlock &&
                      thread() % kMaxGroupsPerBlock < args.groupsPerBlock),
        x_(reinterpret_cast<const uint8_t*>(args.x) + static_cast<int64_t>(share.firstTile) * tileBytes_ +
           thread() % kTileVectors * kVectorBytes),
        weights_(share.weights + static_cast<int64_t>(blockIdx.x) * T::kRowBlocks * rowBlockBytes_ +
                 thread() % kBlockVectors * kVectorBytes),
        scales_(share.weights + static_cast<int64_t>(blockIdx.x) * T::kRowBlocks * rowBlockBytes_ +
                static_cast<int64_t>(smaller(thread() / kMaxGroupsPerBlock, lastBlock_)) * rowBlockBytes_ +
                blockDataBytes(T::kType) + thread() % kMaxGroupsPerBlock * kVectorBytes),
        xTo_(shared + thread() * kVectorBytes),
        weightsTo_(shared + (T::kXBytes + thread() / kBlockVectors * T::kBlockBytes +
                             thread() % kBlockVectors * kVectorBytes)),
        scalesTo_(shared + (T::kXBytes + thread() / kMaxGroupsPerBlock * T::kBlockBytes + T::kDataBytes +
                            thread() % kMaxGroupsPerBlock * kVectorBytes)) {}

  // The next stage of x, the next block of weights. Addresses of pieces follow from there anew.
  __device__ __forceinline__ void advanceX() {
    x_ += T::kStageQuarters * kQuarterBytes;
    lastTile_ = recomputed(lastTile_);
  }
  __device__ __forceinline__ void advanceWeights(int blockBytes) {
    weights_ += blockBytes;
    scales_ += blockBytes;
    lastBlock_ = recomputed(lastBlock_);
  }

  __device__ __forceinline__ void copyX(int piece, int stage) const {
    const int tile = piece * (T::kThreads / kTileVectors) + thread() / kTileVectors;
    copyAsync16(xTo_ + (stage + piece * T::kThreads * kVectorBytes),
                x_ + static_cast<int64_t>(smaller(tile, lastTile_)) * tileBytes_);
  }
  // `part`: which stage of a block.
  __device__ __forceinline__ void copyWeights(int piece, int stage, int part) const {
    constexpr int kPieceBlocks = T::kThreads / kBlockVectors;
    const int block = piece * kPieceBlocks + thread() / kBlockVectors;
    copyAsync16(
        weightsTo_ + (stage + piece * kPieceBlocks * T::kBlockBytes),
        weights_ + static_cast<int64_t>(smaller(block, lastBlock_)) * rowBlockBytes_ + part * T::kDataBytes);
  }
  __device__ __forceinline__ void copyScales(int stage) const {
    if (bringsScales_) copyAsync16(scalesTo_ + stage, scales_);
  }

 private:
  static constexpr int kTileVectors = T::kStageQuarters * kWarp;
  static constexpr int kBlockVectors = T::kStageVectors * kWarp;
  static_assert(T::kThreads % kTileVectors == 0 && T::kThreads % kBlockVectors == 0, "pieces are whole");
  static_assert(T::kThreads >= T::kRowBlocks * kMaxGroupsPerBlock, "a vector of scales per thread");

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

  int lastTile_;
  int lastBlock_;
  const int tileBytes_;
  const int rowBlockBytes_;
  const bool bringsScales_;
  const uint8_t* x_;
  const uint8_t* weights_;
  const uint8_t* scales_;
  const SharedPlace xTo_;
  const SharedPlace weightsTo_;
  const SharedPlace scalesTo_;
};

// The sums of one part. Those of the parts before wait in y: registers for both there are not.
template <class T>
struct Sums {
  float of[T::kRowTiles][T::kPairs][4] = {};

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

// Where the sums of a warp wait.
template <class T>
class Waiting {
 public:
  __device__ __forceinline__ Waiting(const ProductArgs& args, const Share& share, int firstTile,
                                     int firstPair)
      : lane_(recomputed(laneOfThread())),
        n_(args.n),
        rowsLeft_(share.endRow - firstTile * kTileRows),
        columnsLeft_(args.n - firstPair * kPairRows),
        y_(args.y + static_cast<int64_t>(firstTile) * kTileRows * args.n + firstPair * kPairRows),
        hasVectors_(rowsLeft_ >= T::kRowTiles * kTileRows && columnsLeft_ >= T::kPairs * kPairRows &&
                    args.n % 4 == 0 && reinterpret_cast<uintptr_t>(args.y) % sizeof(float4) == 0) {}

  // Adds the sums before to these.
  __device__ __forceinline__ void add(Sums<T>& sums) const {
    if (!hasVectors_) {
      return forEachNumber(sums, [](float& sum, float* place) { sum = *place + sum; });
    }
#pragma unroll
    for (int begin = 0; begin < T::kRowTiles; begin += kBatch) {
      float4 before[kBatch][T::kPairs];
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
#pragma unroll
        for (int j = 0; j < T::kPairs; j++) before[i][j] = *vectorAt(begin + i, j);
      }
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
#pragma unroll
        for (int j = 0; j < T::kPairs; j++) {
          float(&of)[4] = sums.of[begin + i][j];
          of[0] = before[i][j].x + of[0];
          of[1] = before[i][j].y + of[1];
          of[2] = before[i][j].z + of[2];
          of[3] = before[i][j].w + of[3];
        }
      }
    }
  }
  __device__ __forceinline__ void keep(Sums<T>& sums) const {
    if (!hasVectors_) {
      return forEachNumber(sums, [](float& sum, float* place) { *place = sum; });
    }
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
#pragma unroll
      for (int j = 0; j < T::kPairs; j++) {
        const float(&of)[4] = sums.of[i][j];
        *vectorAt(i, j) = {of[0], of[1], of[2], of[3]};
      }
    }
  }

 private:
  // Outputs of a pair.
  static constexpr int kPairRows = 2 * kBlockRows;
  // Tiles whose numbers are on their way from memory together.
  static constexpr int kBatch = 4;

  // A lane has its four sums of a row tile and a pair side by side, somewhere among the 8 x 16 outputs that
  // all lanes have of them: whole vectors go to memory and come back.
  __device__ __forceinline__ float4* vectorAt(int i, int j) const {
    return reinterpret_cast<float4*>(y_ + static_cast<int64_t>(i * kTileRows + lane_ / 4) * n_ +
                                     (j * kPairRows + lane_ % 4 * 4));
  }
  // At the borders: every sum in the place of its output, if there is one.
  template <class Visit>
  __device__ __forceinline__ void forEachNumber(Sums<T>& sums, Visit visit) const {
    Sums<T>::forEach([&](int i, int j, int c) {
      const int row = i * kTileRows + lane_ % 4 * 2 + c % 2;
      const int column = j * kPairRows + lane_ / 4 + c / 2 * kBlockRows;
      if (row < rowsLeft_ && column < columnsLeft_) {
        visit(sums.of[i][j][c], y_ + static_cast<int64_t>(row) * n_ + column);
      }
    });
  }

  const int lane_;
  const int n_;
  const int rowsLeft_;
  const int columnsLeft_;
  float* const y_;
  const bool hasVectors_;
};

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
      : selectors_(laneOfThread(), args.groupsPerBlock),
        values_(blocks + laneOfThread() * kVectorBytes),
        scales_(blocks + (T::kDataBytes + scaleVector(laneOfThread(), args.groupsPerBlock))) {}

  // Reads what a quarter of a block needs and the one before it has not read.
  __device__ __forceinline__ void load(int stage, int quarter) {
    constexpr int kPerVector = quartersPerVector(T::kType);
#pragma unroll
    for (int i = 0; i < T::kWarpBlocks; i++) {
      const int block = stage + i * T::kBlockBytes;
      if (T::kHasScales && quarter % T::kStageQuarters == 0) scalesOf_[i] = load8(scales_ + block);
      if (quarter % kPerVector == 0) {
        const int vector = quarter % T::kStageQuarters / kPerVector;
        vectors_[i] = load16(values_ + (block + vector * kQuarterBytes));
      }
    }
  }
  __device__ __forceinline__ void dequantizeBlock(Fragments<T>& to, int i, int quarter) const {
    const uint32_t scale = T::kHasScales ? selectors_.pair(scalesOf_[i], quarter) : 0;
    dequantize<T::kType>(vectors_[i], quarter, scale, to.of[i]);
  }

 private:
  const ScaleSelectors selectors_;
  const SharedPlace values_;
  const SharedPlace scales_;
  uint4 vectors_[T::kWarpBlocks];
  uint2 scalesOf_[T::kWarpBlocks] = {};
};

template <class T>
__device__ __forceinline__ void multiply(const ProductArgs& args, const Share& share) {
  const SharedPlace shared = sharedPlace(sharedMemory());
  const int outputWarp = warpOfThread() % T::kOutputWarps;
  const int rowWarp = warpOfThread() / T::kOutputWarps;
  const SharedPlace xPlace =
      shared + (rowWarp * T::kRowTiles * T::kStageQuarters * kQuarterBytes + laneOfThread() * kVectorBytes);
  Copies<T> copies(args, share, shared);
  Dequantizing<T> weights(args, shared + (T::kXBytes + outputWarp * T::kWarpBlocks * T::kBlockBytes));

  // Stages, as offsets: of x the one that is multiplied, of weights that one, the next and the one after it.
  int x = 0;
  int here = 0;
  int next = T::kWeightStageBytes;
  int free = 2 * T::kWeightStageBytes;
  int xLeft = args.columnBlocks * T::kStagesPerBlock - 1;  // behind the stage whose copies begin
  int weightsLeft = args.columnBlocks - 1;
  // Behind the last stage it comes again, and nobody uses it.
  const auto advanceX = [&] {
    if (xLeft-- > 0) copies.advanceX();
  };
  const auto advanceWeights = [&] {
    if (weightsLeft-- > 0) copies.advanceWeights(args.blockBytes);
  };
#pragma unroll
  for (int i = 0; i < Copies<T>::kXPieces; i++) copies.copyX(i, 0);
#pragma unroll
  for (int stage = 0; stage < 2; stage++) {
    const int at = stage * T::kWeightStageBytes;
#pragma unroll
    for (int i = 0; i < Copies<T>::kWeightPieces; i++) {
      copies.copyWeights(i, at, stage % T::kStagesPerBlock);
    }
    if (T::kHasScales) copies.copyScales(at);
    if (stage % T::kStagesPerBlock + 1 == T::kStagesPerBlock) advanceWeights();
  }
  commitCopies();
  waitCopies<0>();
  __syncthreads();

  // A quarter's fragments are made while those of the one before it are multiplied.
  Fragments<T> fragments[2];
  weights.load(0, 0);
#pragma unroll
  for (int i = 0; i < T::kWarpBlocks; i++) weights.dequantizeBlock(fragments[0], i, 0);

  const auto addBlock = [&](Sums<T>& sums) {
#pragma unroll
    for (int part = 0; part < T::kStagesPerBlock; part++) {
      advanceX();
      const auto copyPiece = [&](int piece) {
        if (piece < Copies<T>::kXPieces) {
          copies.copyX(piece, T::kXStageBytes - x);
        } else if (piece < Copies<T>::kXPieces + Copies<T>::kWeightPieces) {
          copies.copyWeights(piece - Copies<T>::kXPieces, free, part);
        } else if (piece < Copies<T>::kPieces) {
          copies.copyScales(free);
        }
      };
      constexpr int kGroups = T::kStageQuarters * T::kGroups;
      // Copies begin in the first half of a stage, not all at once.
      constexpr int kPiecesPerGroup = (Copies<T>::kPieces + kGroups / 2 - 1) / (kGroups / 2);
      uint4 rows[2][kGroupTiles];
      const auto loadRows = [&](int group) {
#pragma unroll
        for (int i = 0; i < kGroupTiles; i++) {
          const int tile = group % T::kGroups * kGroupTiles + i;
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
        const int nextQuarter = (part * T::kStageQuarters + quarter + 1) % kQuarters;
        if (inQuarter == 0) {
          // The last quarter of a stage makes ready the first one of the next.
          weights.load(quarter + 1 == T::kStageQuarters ? next : here, nextQuarter);
        }
#pragma unroll
        for (int i = 0; i < kPiecesPerGroup; i++) copyPiece(group * kPiecesPerGroup + i);
#pragma unroll
        for (int step = 0; step < kQuarterSteps; step++) {
#pragma unroll
          for (int i = 0; i < kGroupTiles; i++) {
#pragma unroll
            for (int pair = 0; pair < T::kPairs; pair++) {
              const Fragments<T>& ready = fragments[quarter % 2];
              multiplyStep<Path::kAmpere>(sums.of[inQuarter * kGroupTiles + i][pair],
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
    }
    advanceWeights();
  };

  const int firstTile = share.firstTile + rowWarp * T::kRowTiles;
  const int firstPair = (static_cast<int>(blockIdx.x) * T::kOutputWarps + outputWarp) * T::kPairs;
  const int perPart = blocksPerPart(args.columnBlocks);
  for (int begin = 0; begin < args.columnBlocks; begin += perPart) {
    Sums<T> sums;
    const int end = smaller(begin + perPart, args.columnBlocks);
#pragma unroll 1
    for (int block = begin; block < end; block++) addBlock(sums);
    const Waiting<T> waiting(args, share, firstTile, firstPair);
    if (begin > 0) waiting.add(sums);
    if (end < args.columnBlocks) {
      waiting.keep(sums);
      continue;
    }
    // Sums of other lanes may wait in the place of this one's outputs.
    __syncwarp();
    const int lane = recomputed(laneOfThread());
    Sums<T>::forEach([&](int i, int j, int c) {
      storeSum(args, share, sums.of[i][j][c], firstTile + i, firstPair + j, lane, c);
    });
  }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerProcessor) widerKernel(const ProductArgs args) {
  multiply<T>(args, shareOf(args, T::kBlockTiles));
}

// A warp of 32 outputs and 128 rows, two blocks of threads per multiprocessor where their shared memory has
// room.
template <WeightType kType>
using TileFor = Tile<kType, 2, 16, 4, 1, 2>;

template <WeightType kType>
void start(cudaStream_t stream, const ProductArgs& args) {
  using T = TileFor<kType>;
  const dim3 grid{static_cast<unsigned int>((args.rowBlocks + T::kRowBlocks - 1) / T::kRowBlocks),
                  rowTilesOfGrid(args, T::kBlockTiles, nullptr), 1};
  launch(widerKernel<T>, grid, T::kThreads, T::kSharedBytes, stream, args);
}

template <WeightType kType>
void prepare() {
  using T = TileFor<kType>;
  cudaFuncSetAttribute(widerKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
}

}  // namespace

void prepareWiderProducts() {
  prepare<WeightType::kStored>();
  prepare<WeightType::kInt8>();
  prepare<WeightType::kInt4>();
}

void widerProduct(cudaStream_t stream, WeightType type, const ProductArgs& args) {
  switch (type) {
    case WeightType::kInt4:
      return start<WeightType::kInt4>(stream, args);
    case WeightType::kInt8:
      return start<WeightType::kInt8>(stream, args);
    case WeightType::kStored:
      return start<WeightType::kStored>(stream, args);
  }
}

}  // namespace glm_relay::cuda
