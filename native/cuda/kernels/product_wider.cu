#include <type_traits>

#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"
#include "cuda/kernels/product_store.h"

namespace glm_relay::cuda {

namespace {

constexpr int kQuarterBytes = kWarp * kVectorBytes;

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

  static constexpr int kWarps = kOutputWarps * kRowWarps;
  static constexpr int kThreads = kWarps * kWarp;
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

  // Row tiles of x that are multiplied in turn, so that no matrix instruction waits for the one before it: as
  // many as do without spills.
  static constexpr int kGroupTiles = kType == WeightType::kInt4 ? 2 : 4;
  static constexpr int kGroups = kRowTiles / kGroupTiles;  // of a quarter
};

// Blocks of threads that follow each other have the same weights, so that these come from memory once.
__device__ __forceinline__ int outputTile() { return static_cast<int>(blockIdx.y); }
template <class T>
__device__ __forceinline__ Share shareOf(const ProductArgs& args) {
  return {args.weights, args.rowScales, static_cast<int>(blockIdx.x) * T::kBlockTiles, args.rows};
}

// The copies of a warp, vectors of all lanes at a time: the same for every stage. What is behind the last row
// or output is computed like the last tile and row of blocks, and not stored.
template <class T>
class Copies {
 public:
  // Row tiles and rows of blocks that a warp copies.
  static constexpr int kTiles = T::kBlockTiles / T::kWarps;
  static constexpr int kBlocks = T::kRowBlocks / T::kWarps;
  static constexpr int kXPieces = kTiles * T::kStageQuarters;
  static constexpr int kWeightPieces = kBlocks * T::kStageVectors;
  static constexpr int kPieces = kXPieces + kWeightPieces + (T::kHasScales ? 1 : 0);

  __device__ __forceinline__ Copies(const ProductArgs& args, const Share& share, SharedPlace shared)
      : shared_(shared),
        thread_(static_cast<int>(threadIdx.x)),
        lastTile_(share.endTile() - 1 - share.firstTile),
        lastBlock_(args.rowBlocks - 1 - outputTile() * T::kRowBlocks),
        tileBytes_(args.columnBlocks * kQuarters * kQuarterBytes),
        rowBlockBytes_(args.columnBlocks * args.blockBytes),
        groups_(args.groupsPerBlock),
        x_(reinterpret_cast<const uint8_t*>(args.x) + static_cast<int64_t>(share.firstTile) * tileBytes_ +
           laneOfThread() * kVectorBytes),
        weights_(share.weights + static_cast<int64_t>(outputTile()) * T::kRowBlocks * rowBlockBytes_) {}

  // The next stage of x, the next block of weights.
  __device__ __forceinline__ void advanceX() { x_ += T::kStageQuarters * kQuarterBytes; }
  __device__ __forceinline__ void advanceWeights(int blockBytes) { weights_ += blockBytes; }
  // To be called for every stage: registers keep a few numbers, and not all that follows from them.
  __device__ __forceinline__ void recompute() { thread_ = recomputed(thread_); }

  __device__ __forceinline__ void copyX(int piece, int stage) const {
    const int tile = thread_ / kWarp * kTiles + piece / T::kStageQuarters;
    const int offset = piece % T::kStageQuarters * kQuarterBytes;
    copyAsync16(shared_ + (thread_ / kWarp * (kTiles * kTileBytes) + thread_ % kWarp * kVectorBytes + stage +
                           (piece / T::kStageQuarters * kTileBytes + offset)),
                x_ + static_cast<int64_t>(smaller(tile, lastTile_)) * tileBytes_ + offset);
  }
  // `part`: which stage of a block.
  __device__ __forceinline__ void copyWeights(int piece, int stage, int part) const {
    const int block = thread_ / kWarp * kBlocks + piece / T::kStageVectors;
    const int offset = piece % T::kStageVectors * kQuarterBytes;
    const int lane = thread_ % kWarp * kVectorBytes;
    copyAsync16(shared_ + (thread_ / kWarp * (kBlocks * T::kBlockBytes) + lane + stage +
                           (T::kXBytes + piece / T::kStageVectors * T::kBlockBytes + offset)),
                weights_ + static_cast<int64_t>(smaller(block, lastBlock_)) * rowBlockBytes_ + lane +
                    (part * T::kDataBytes + offset));
  }
  __device__ __forceinline__ void copyScales(int stage) const {
    const int block = thread_ / kMaxGroupsPerBlock;
    const int group = thread_ % kMaxGroupsPerBlock;
    if (block < T::kRowBlocks && group < groups_) {
      copyAsync16(
          shared_ + (block * T::kBlockBytes + group * kVectorBytes + stage + (T::kXBytes + T::kDataBytes)),
          weights_ + static_cast<int64_t>(smaller(block, lastBlock_)) * rowBlockBytes_ +
              group * kVectorBytes + blockDataBytes(T::kType));
    }
  }

 private:
  static constexpr int kTileBytes = T::kStageQuarters * kQuarterBytes;
  static_assert(T::kBlockTiles % T::kWarps == 0 && T::kRowBlocks % T::kWarps == 0, "shares are equal");
  static_assert(T::kThreads >= T::kRowBlocks * kMaxGroupsPerBlock, "a vector of scales per thread");

  const SharedPlace shared_;
  int thread_;
  const int lastTile_;
  const int lastBlock_;
  const int tileBytes_;
  const int rowBlockBytes_;
  const int groups_;
  const uint8_t* x_;
  const uint8_t* weights_;
};

// The sums of one part. Those of the parts before wait in y: registers for both there are not.
template <class T>
struct Sums {
  float of[T::kRowTiles][T::kPairs][4] = {};
};

// The outputs of a warp in y.
template <class T>
class Outputs {
 public:
  __device__ __forceinline__ Outputs(const ProductArgs& args, const Share& share)
      : args_(args),
        share_(share),
        thread_(recomputed(static_cast<int>(threadIdx.x))),
        lane_(thread_ % kWarp),
        n_(recomputed(args.n)),
        firstRow_((share.firstTile + thread_ / kWarp / T::kOutputWarps * T::kRowTiles) * kTileRows),
        firstColumn_((outputTile() * T::kOutputWarps + thread_ / kWarp % T::kOutputWarps) * T::kPairs *
                     kPairRows),
        hasVectors_(firstRow_ + T::kRowTiles * kTileRows <= share.endRow &&
                    firstColumn_ + T::kPairs * kPairRows <= args.n && args.n % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(args.y) % sizeof(float4) == 0) {}

  // Adds the sums that wait to these.
  __device__ __forceinline__ void add(Sums<T>& sums) const {
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
  __device__ __forceinline__ void keep(const Sums<T>& sums) const {
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
  __device__ __forceinline__ void store(const Sums<T>& sums) const {
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
    dequantize<T::kType>(vectors_[i], quarter, twice, to.of[i]);
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
  Copies<T> copies(args, share, shared);
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
  for (int i = 0; i < Copies<T>::kXPieces; i++) copies.copyX(i, 0);
#pragma unroll
  for (int stage = 0; stage < 2; stage++) {
    const int at = stage * T::kWeightStageBytes;
#pragma unroll
    for (int i = 0; i < Copies<T>::kWeightPieces; i++) {
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
  const auto addStage = [&](Sums<T>& sums, int stage) {
    const int part = stage % kStages;
    if (stage + 1 < stages) copies.advanceX();
    copies.recompute();
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
    // Copies begin early in a stage, but not all at once.
    constexpr int kPiecesPerGroup = 2 * T::kGroupTiles;
    static_assert(kPiecesPerGroup * kGroups >= Copies<T>::kPieces, "all pieces are copied");
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
  for (int begin = 0; begin < args.columnBlocks; begin += perPart) {
    Sums<T> sums;
    const int end = smaller(begin + perPart, args.columnBlocks);
#pragma unroll 1
    for (int stage = begin * kStages; stage < end * kStages; stage++) addStage(sums, stage);
    const Outputs<T> outputs(args, share);
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

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerProcessor) widerKernel(const ProductArgs args) {
  multiply<T>(args, shareOf<T>(args));
}

// Warps of 128 rows and two blocks of threads per multiprocessor, where their shared memory has room. With
// few blocks, one per multiprocessor, there are eight warps of 64 rows.
template <WeightType kType, bool kFewBlocks>
using TileFor = std::conditional_t<kFewBlocks, Tile<kType, 2, 8, 4, 2, 1>, Tile<kType, 2, 16, 4, 1, 2>>;

template <class T>
void start(cudaStream_t stream, const ProductArgs& args) {
  const dim3 grid{rowTilesOfGrid(args, T::kBlockTiles, nullptr),
                  static_cast<unsigned int>((args.rowBlocks + T::kRowBlocks - 1) / T::kRowBlocks), 1};
  launch(widerKernel<T>, grid, T::kThreads, T::kSharedBytes, stream, args);
}

template <class T>
void prepareTile() {
  cudaFuncSetAttribute(widerKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
}

template <WeightType kType>
void prepare() {
  prepareTile<TileFor<kType, false>>();
  prepareTile<TileFor<kType, true>>();
}

template <bool kFewBlocks>
void startType(cudaStream_t stream, WeightType type, const ProductArgs& args) {
  switch (type) {
    case WeightType::kInt4:
      return start<TileFor<WeightType::kInt4, kFewBlocks>>(stream, args);
    case WeightType::kInt8:
      return start<TileFor<WeightType::kInt8, kFewBlocks>>(stream, args);
    case WeightType::kStored:
      return start<TileFor<WeightType::kStored, kFewBlocks>>(stream, args);
  }
}

}  // namespace

void prepareWiderProducts() {
  prepare<WeightType::kStored>();
  prepare<WeightType::kInt8>();
  prepare<WeightType::kInt4>();
}

void widerProduct(cudaStream_t stream, WeightType type, bool fewBlocks, const ProductArgs& args) {
  if (fewBlocks) return startType<true>(stream, type, args);
  startType<false>(stream, type, args);
}

}  // namespace glm_relay::cuda
