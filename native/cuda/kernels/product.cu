#include "cuda/kernels/device.h"
#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product.h"

namespace glm_relay::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMaxGroups = 4;  // of a block
// Rows of x in shared memory, in vectors of 16 bytes.
constexpr int kRowVectors = kBlockColumns * 2 / kVectorBytes;

// How much a block of threads computes, and how many stages of copies are under way.
template <Path kPath_, WeightType kType_, int kRowTiles_, int kColumnTiles_, int kStages_>
struct Tile {
  static constexpr Path kPath = kPath_;
  static constexpr WeightType kType = kType_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kColumnTiles = kColumnTiles_;
  static constexpr int kStages = kStages_;

  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kRowBlocks = kWarps * kColumnTiles;  // of weights
  static constexpr int kDataVectors = vectorsPerLane(kType);
  static constexpr int kScaleVectors = kType == WeightType::kStored ? 0 : kMaxGroups;
  static constexpr int kBlockBytes = blockDataBytes(kType) + kScaleVectors * kVectorBytes;
  static constexpr int kXBytes = kRows * kRowVectors * kVectorBytes;
  static constexpr int kStageBytes = kXBytes + kRowBlocks * kBlockBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  // Vectors of x that a thread copies per stage.
  static constexpr int kXVectors = kRows * kRowVectors / kThreads;
};

// Vectors of a row change places by the row's number, so that 8 rows at the same column lie in all banks.
__device__ __forceinline__ int xVector(int row, int vector) {
  return row * kRowVectors + (vector ^ (row & 7));
}

// Which rows of y a block of threads computes, of which x, and by which weights. Its columns follow from
// blockIdx.x.
struct Share {
  const uint8_t* weights;
  const float* rowScales;
  int firstRow;
  int endRow;                // rows from here on are another block's, or nobody's
  const int32_t* xRowOfRow;  // null: the same row

  __device__ __forceinline__ int xRow(int row) const { return xRowOfRow == nullptr ? row : xRowOfRow[row]; }
};

// What one thread brings from global memory for one stage; `to` takes it piece by piece:
// to(shared, global, valid), in an order that is the same for every stage.
template <class T, class To>
__device__ __forceinline__ void forEachPiece(const ProductArgs& args, const Share& share, uint8_t* stage,
                                             int columnBlock, To to) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t paddedK = static_cast<int64_t>(args.columnBlocks) * kBlockColumns;
#pragma unroll
  for (int i = 0; i < T::kXVectors; i++) {
    const int at = i * kThreads + thread;
    const int row = at / kRowVectors;
    const int vector = at % kRowVectors;
    const bool valid = share.firstRow + row < share.endRow;
    const uint16_t* from = args.x + (valid ? share.xRow(share.firstRow + row) : 0) * paddedK +
                           static_cast<int64_t>(columnBlock) * kBlockColumns + vector * 8;
    to(stage + xVector(row, vector) * kVectorBytes, from, valid);
  }
  // Each warp brings its own weights.
  const int lane = laneOfThread();
  const int firstBlock = static_cast<int>(blockIdx.x) * T::kRowBlocks + warpOfThread() * T::kColumnTiles;
  uint8_t* blocks = stage + T::kXBytes + warpOfThread() * T::kColumnTiles * T::kBlockBytes;
#pragma unroll
  for (int i = 0; i < T::kColumnTiles; i++) {
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
  if constexpr (T::kScaleVectors > 0) {
    // A vector per lane: that many groups of that many blocks.
    const int block = lane / kMaxGroups;
    const int group = lane % kMaxGroups;
    if (block < T::kColumnTiles && group < args.groupsPerBlock) {
      const bool valid = firstBlock + block < args.rowBlocks;
      const int offset = blockDataBytes(T::kType) + group * kVectorBytes;
      const int64_t index =
          static_cast<int64_t>(valid ? firstBlock + block : 0) * args.columnBlocks + columnBlock;
      to(blocks + block * T::kBlockBytes + offset, share.weights + index * args.blockBytes + offset, valid);
    }
  }
}

template <class T>
struct Sums {
  float of[T::kRowTiles][T::kColumnTiles][4];
};

// Adds the products of one stage.
template <class T>
__device__ __forceinline__ void multiplyStage(Sums<T>& sums, const uint8_t* stage, int stepShift) {
  const int lane = laneOfThread();
  const uint8_t* blocks = stage + T::kXBytes + warpOfThread() * T::kColumnTiles * T::kBlockBytes;
  // Few vectors are held at a time: a matrix of FP16 values has four per lane and block.
#pragma unroll
  for (int step = 0; step < kBlockSteps; step++) {
    uint32_t a[T::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < T::kRowTiles; i++) {
      loadMatrices(a[i], stage + xVector(16 * i + lane % 16, 2 * step + lane / 16) * kVectorBytes);
    }
#pragma unroll
    for (int j = 0; j < T::kColumnTiles; j++) {
      uint32_t b[2];
      BlockFragments<T::kType>(blocks + j * T::kBlockBytes, lane, stepShift).fragment(step, b);
#pragma unroll
      for (int i = 0; i < T::kRowTiles; i++) {
        if constexpr (T::kPath == Path::kAmpere) {
          multiply16x8x16(sums.of[i][j], a[i], b);
        } else {
          multiply16x8x8(sums.of[i][j], a[i], b[0]);
          multiply16x8x8(sums.of[i][j], a[i] + 2, b[1]);
        }
      }
    }
  }
}

// kAmpere: copies run ahead by kStages - 1 stages, past the registers.
template <class T>
__device__ __forceinline__ void sumAsync(Sums<T>& sums, const ProductArgs& args, const Share& share,
                                         uint8_t* shared, int stepShift) {
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
    multiplyStage<T>(sums, shared + i % T::kStages * T::kStageBytes, stepShift);
  }
}

// kTuring: the next stage waits in registers while this one is multiplied.
template <class T>
__device__ __forceinline__ void sumThroughRegisters(Sums<T>& sums, const ProductArgs& args,
                                                    const Share& share, uint8_t* shared, int stepShift) {
  constexpr int kPieces = T::kXVectors + T::kColumnTiles * T::kDataVectors + (T::kScaleVectors > 0 ? 1 : 0);
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
    multiplyStage<T>(sums, shared + i % 2 * T::kStageBytes, stepShift);
    // Into the stage before this one, which all have left: they passed the last barrier.
    if (more) store(i + 1);
    __syncthreads();
  }
}

template <class T>
__device__ __forceinline__ void storeSums(const Sums<T>& sums, const ProductArgs& args, const Share& share) {
  const int lane = laneOfThread();
  const int firstColumn =
      (static_cast<int>(blockIdx.x) * T::kRowBlocks + warpOfThread() * T::kColumnTiles) * kBlockRows;
#pragma unroll
  for (int i = 0; i < T::kRowTiles; i++) {
#pragma unroll
    for (int j = 0; j < T::kColumnTiles; j++) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int row = share.firstRow + 16 * i + lane / 4 + c / 2 * 8;
        const int column = firstColumn + j * kBlockRows + lane % 4 * 2 + c % 2;
        if (row >= share.endRow || column >= args.n) continue;
        const float sum = (sums.of[i][j][c] * share.rowScales[column]) * args.xScales[share.xRow(row)];
        args.y[static_cast<int64_t>(row) * args.n + column] = args.bias ? sum + args.bias[column] : sum;
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void multiplyShare(const ProductArgs& args, const Share& share) {
  uint8_t* shared = sharedMemory();
  // 128 columns are 1, 2 or 4 groups: 8, 4 or 2 steps each.
  const int stepShift = args.groupsPerBlock == 4 ? 1 : args.groupsPerBlock == 2 ? 2 : 3;
  Sums<T> sums = {};
  if constexpr (T::kPath == Path::kAmpere) {
    sumAsync<T>(sums, args, share, shared, stepShift);
  } else {
    sumThroughRegisters<T>(sums, args, share, shared, stepShift);
  }
  storeSums<T>(sums, args, share);
}

template <class T>
__global__ void __launch_bounds__(kThreads) productKernel(const ProductArgs args) {
  const int firstRow = static_cast<int>(blockIdx.y) * T::kRows;
  multiplyShare<T>(args, {args.weights, args.rowScales, firstRow, args.rows, nullptr});
}

// One grid for the matrices of many experts. Blocks of a tile without rows have nothing to do.
template <class T>
__global__ void __launch_bounds__(kThreads)
    groupedProductKernel(const ProductArgs args, const GroupedRows grouped) {
  const ExpertTile tile = grouped.tiles[blockIdx.y];
  if (tile.rows == 0) return;
  const ExpertMatrix matrix = grouped.matrices[tile.expert];
  multiplyShare<T>(
      args, {matrix.weights, matrix.rowScales, tile.firstRow, tile.firstRow + tile.rows, grouped.xRowOfRow});
}

// Shared memory of a block is at most 64 KB on sm_75 and 99 KB on sm_86 and sm_89.
template <Path kPath, WeightType kType, int kRowTiles>
struct TileFor;
template <WeightType kType>
struct TileFor<Path::kAmpere, kType, 1> {
  using Type = Tile<Path::kAmpere, kType, 1, 1, kType == WeightType::kStored ? 4 : 6>;
};
template <WeightType kType>
struct TileFor<Path::kAmpere, kType, 2> {
  using Type = Tile<Path::kAmpere, kType, 2, 2, 3>;
};
template <WeightType kType>
struct TileFor<Path::kAmpere, kType, 4> {
  using Type = Tile<Path::kAmpere, kType, 4, 4, kType == WeightType::kInt4 ? 3 : 2>;
};
template <WeightType kType, int kRowTiles>
struct TileFor<Path::kTuring, kType, kRowTiles> {
  static constexpr int kWide = kType == WeightType::kInt4 ? 4 : kType == WeightType::kInt8 ? 2 : 1;
  using Type = Tile<Path::kTuring, kType, kRowTiles, (kRowTiles < kWide ? kRowTiles : kWide), 2>;
};

template <class T>
unsigned int columnBlocksOf(const ProductArgs& args) {
  return static_cast<unsigned int>((args.rowBlocks + T::kRowBlocks - 1) / T::kRowBlocks);
}

template <class T>
void start(cudaStream_t stream, const ProductArgs& args) {
  const dim3 grid{columnBlocksOf<T>(args), static_cast<unsigned int>((args.rows + T::kRows - 1) / T::kRows),
                  1};
  launch(productKernel<T>, grid, kThreads, T::kSharedBytes, stream, args);
}

template <class T>
void start(cudaStream_t stream, const ProductArgs& args, const GroupedRows& grouped) {
  const dim3 grid{columnBlocksOf<T>(args), static_cast<unsigned int>(grouped.tileCount), 1};
  launch(groupedProductKernel<T>, grid, kThreads, T::kSharedBytes, stream, args, grouped);
}

// `arguments`: ProductArgs, and GroupedRows or nothing.
template <Path kPath, WeightType kType, class... Arguments>
void startWithTile(cudaStream_t stream, int rowTiles, const Arguments&... arguments) {
  if (rowTiles == 1) return start<typename TileFor<kPath, kType, 1>::Type>(stream, arguments...);
  if (rowTiles == 2) return start<typename TileFor<kPath, kType, 2>::Type>(stream, arguments...);
  start<typename TileFor<kPath, kType, 4>::Type>(stream, arguments...);
}

template <Path kPath, class... Arguments>
void startOfType(cudaStream_t stream, WeightType type, int rowTiles, const Arguments&... arguments) {
  if (type == WeightType::kInt4) {
    return startWithTile<kPath, WeightType::kInt4>(stream, rowTiles, arguments...);
  }
  if (type == WeightType::kInt8) {
    return startWithTile<kPath, WeightType::kInt8>(stream, rowTiles, arguments...);
  }
  startWithTile<kPath, WeightType::kStored>(stream, rowTiles, arguments...);
}

template <class... Arguments>
void startOnPath(cudaStream_t stream, Path path, WeightType type, int rowTiles,
                 const Arguments&... arguments) {
  if (path == Path::kAmpere) return startOfType<Path::kAmpere>(stream, type, rowTiles, arguments...);
  startOfType<Path::kTuring>(stream, type, rowTiles, arguments...);
}

template <Path kPath, WeightType kType>
void prepareTiles() {
  const auto prepare = [](auto tile) {
    using T = decltype(tile);
    cudaFuncSetAttribute(productKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
    cudaFuncSetAttribute(groupedProductKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         T::kSharedBytes);
  };
  prepare(typename TileFor<kPath, kType, 1>::Type{});
  prepare(typename TileFor<kPath, kType, 2>::Type{});
  prepare(typename TileFor<kPath, kType, 4>::Type{});
}

template <Path kPath>
void preparePath() {
  prepareTiles<kPath, WeightType::kStored>();
  prepareTiles<kPath, WeightType::kInt8>();
  prepareTiles<kPath, WeightType::kInt4>();
}

}  // namespace

void prepareProducts(Path path) {
  if (path == Path::kAmpere) preparePath<Path::kAmpere>();
  preparePath<Path::kTuring>();
}

void productWithTile(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args) {
  startOnPath(stream, path, type, rowTiles, args);
}

void product(cudaStream_t stream, Path path, WeightType type, const ProductArgs& args) {
  const int rowTiles = args.rows <= 16 ? 1 : args.rows <= 32 ? 2 : 4;
  productWithTile(stream, path, type, rowTiles, args);
}

void groupedProduct(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args,
                    const GroupedRows& grouped) {
  startOnPath(stream, path, type, rowTiles, args, grouped);
}

}  // namespace glm_relay::cuda
