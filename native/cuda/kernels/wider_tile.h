// How much a block of threads of the wider products computes, and how weights and x get there.
#pragma once

#include "cuda/kernels/fragments.h"
#include "cuda/kernels/product_store.h"

namespace glm_relay::cuda {

constexpr int kQuarterBytes = kWarp * kVectorBytes;

// What a block of threads computes: kOutputWarps x kRowWarps warps, each of them kPairs pairs of rows of
// blocks (16 outputs each) by kRowTiles tiles of x. A warp dequantizes for itself: the more rows it has, the
// fewer instructions are not matrix instructions.
template <WeightType kType_, int kPairs_, int kRowTiles_, int kOutputWarps_, int kRowWarps_>
struct WiderTile {
  static constexpr WeightType kType = kType_;
  static constexpr int kPairs = kPairs_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kOutputWarps = kOutputWarps_;
  static constexpr int kRowWarps = kRowWarps_;
  // Registers have room for the sums of a part and for those of the parts before it, which wait in y
  // otherwise.
  static constexpr bool kKeepsTotal = kRowTiles <= 8;
  static constexpr bool kFewRegisters = !kKeepsTotal;

  static constexpr int kWarps = kOutputWarps * kRowWarps;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kWarpBlocks = 2 * kPairs;
  static constexpr int kRowBlocks = kOutputWarps * kWarpBlocks;
  static constexpr int kBlockTiles = kRowWarps * kRowTiles;
  // Of threads; all registers are in use.
  static constexpr int kBlocksPerProcessor = 8 / kWarps;

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
__device__ __forceinline__ Share widerShareOf(const ProductArgs& args) {
  return {args.weights, args.rowScales, static_cast<int>(blockIdx.x) * T::kBlockTiles, args.rows};
}

// The copies of a warp, vectors of all lanes at a time: the same for every stage. What is behind the last row
// or output is computed like the last tile and row of blocks, and not stored.
template <class T>
class WiderCopies {
 public:
  // Row tiles and rows of blocks that a warp copies.
  static constexpr int kTiles = T::kBlockTiles / T::kWarps;
  static constexpr int kBlocks = T::kRowBlocks / T::kWarps;
  static constexpr int kXPieces = kTiles * T::kStageQuarters;
  static constexpr int kWeightPieces = kBlocks * T::kStageVectors;
  static constexpr int kPieces = kXPieces + kWeightPieces + (T::kHasScales ? 1 : 0);

  __device__ __forceinline__ WiderCopies(const ProductArgs& args, const Share& share, SharedPlace shared)
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
  __device__ __forceinline__ void recompute() { thread_ = computedAnew(thread_); }

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

}  // namespace glm_relay::cuda
