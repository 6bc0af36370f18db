// A tile of keys and values in shared memory: as the cache has them (cache_slot.h), of 32 slots, with zeros
// for slots that nobody sees and for dimensions that the head does not have. Vectors of 16 bytes change
// places by their slot's number, so that matrices of 8 slots lie in all banks.
#pragma once

#include "cuda/kernels/attention_parts.h"

namespace glm_relay::cuda {

// How a block computes: kWarps times 16 queries, which read the same tiles, of heads of kDim dimensions, or
// (not kExact) of up to so many.
template <Path kPath_, KvType kType_, int kDim_, bool kExact_, int kWarps_>
struct AttentionTile {
  static constexpr Path kPath = kPath_;
  static constexpr KvType kType = kType_;
  static constexpr int kDim = kDim_;
  static constexpr bool kExact = kExact_;
  static constexpr int kWarps = kWarps_;

  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kSlots = 2 * kCacheTile;
  static constexpr int kElementBytes = kType == KvType::kInt8 ? 1 : 2;
  static constexpr int kRowVectors = kDim * kElementBytes / 16;
  static constexpr int kRowBytes = kRowVectors * 16;
  // Of keys, or of values; the FP16 scales of 8-bit ones follow.
  static constexpr int kDataBytes = kSlots * kRowBytes;
  static constexpr int kScaleVectors = kType == KvType::kInt8 ? kSlots * 2 / 16 : 0;
  static constexpr int kSideBytes = kDataBytes + (kScaleVectors > 0 ? 128 : 0);
  static constexpr int kStageBytes = 2 * kSideBytes;
  // A warp that is alone has the more tiles on their way.
  static constexpr int kStages = kPath == Path::kTuring ? 1 : kWarps == 1 ? 3 : 2;

  // A query is one FP16 number per dimension, or the sum of two bfloat16 numbers.
  static constexpr int kQueryParts = kType == KvType::kBfloat16 ? 2 : 1;
  static constexpr int kQueryRowBytes = kDim * 2;
  static constexpr int kQueryPartBytes = 16 * kQueryRowBytes;
  static constexpr int kQueryBytes = kQueryParts * kQueryPartBytes;  // of a warp
  static constexpr int kQueriesBegin = kStages * kStageBytes;
  static constexpr int kSharedBytes = kQueriesBegin + kWarps * kQueryBytes;
  // So a place in a row is changed by an exclusive or.
  static_assert(kSideBytes % kRowBytes == 0 && kQueriesBegin % kQueryRowBytes == 0, "rows are aligned");

  static __device__ __forceinline__ int headDim(const CacheView& cache) {
    return kExact ? kDim : cache.headDim;
  }
  // Where a vector of a slot's row lies, and one of a query's. The vector (v ^ w) lies where v does, ^ 16 w.
  static __device__ __forceinline__ int rowPlace(int slot, int vector) {
    const int swap = kRowVectors >= 8 ? slot & 7 : slot / 2 & 3;
    return slot * kRowBytes + (vector ^ swap) * 16;
  }
  static __device__ __forceinline__ int queryPlace(int query, int vector) {
    return query * kQueryRowBytes + (vector ^ (query & 7)) * 16;
  }
  // Scales of slots `slot` and slot + 1, an even one, of the keys or values at `side`.
  static __device__ __forceinline__ uint32_t scalePair(const uint8_t* side, int slot) {
    return *reinterpret_cast<const uint32_t*>(side + kDataBytes + 2 * slot);
  }
};

// The keys and values of one KV head of a sequence.
struct HeadSlots {
  const CacheView& cache;
  const int32_t* table;
  int kvHead;
  int lastVisible;
};

// Tiles of the cache, one after the other.
class TileWalk {
 public:
  __device__ __forceinline__ TileWalk(const CacheView& cache, int tile)
      : block_(tile / cache.tilesPerBlock), tile_(tile % cache.tilesPerBlock) {}
  __device__ __forceinline__ int64_t offset(const HeadSlots& slots) const {
    const CacheView& cache = slots.cache;
    const int tile = slots.table[block_] * cache.tilesPerBlock + tile_;
    return static_cast<int64_t>(tile * cache.kvHeadCount + slots.kvHead) * static_cast<int>(cache.tileBytes);
  }
  __device__ __forceinline__ void next(const CacheView& cache) {
    if (++tile_ < cache.tilesPerBlock) return;
    tile_ = 0;
    block_++;
  }

 private:
  int block_;
  int tile_;
};

// What one thread brings of the tile that begins at `slot`, where `walk` is: pieces of 16 bytes, each given
// to a function as (shared, global, valid).
template <class T>
class TilePieces {
 public:
  static constexpr int kDataPieces = T::kDataBytes / 16 / T::kThreads;  // of keys, or of values

  // Walks on, to the tile behind it.
  __device__ __forceinline__ TilePieces(const HeadSlots& from, TileWalk& walk, uint8_t* stage, int slot)
      : cache_(from.cache),
        stage_(stage),
        thread_(static_cast<int>(threadIdx.x)),
        visible_(from.lastVisible - slot + 1) {
    first_ = walk.offset(from);
    walk.next(cache_);
    // Behind the last visible slot the table may name no block.
    second_ = visible_ > kCacheTile ? walk.offset(from) : first_;
    walk.next(cache_);
  }

  __device__ __forceinline__ bool allVisible() const { return visible_ >= T::kSlots; }

  // Keys or values: the pieces [kBegin, kBegin + kCount). kAll: all slots are visible.
  template <int kBegin, int kCount, bool kAll, class To>
  __device__ __forceinline__ void data(bool values, To to) const {
    // A thread has the same vector of rows that lie kRows apart.
    constexpr int kRows = T::kThreads / T::kRowVectors;
    const int row = thread_ / T::kRowVectors;
    const int vector = thread_ % T::kRowVectors;
    const int rowBytes = T::headDim(cache_) * T::kElementBytes;
    const int slots = kAll ? T::kSlots : visible_ - row;
    const int visible = T::kExact || vector * 16 < rowBytes ? slots : 0;
    const int place = T::rowPlace(row, vector);
    const uint8_t* global = nullptr;
#pragma unroll
    for (int i = kBegin; i < kBegin + kCount; i++) {
      const int below = i * kRows;
      if (i == kBegin || below % kCacheTile == 0) {
        const bool isFirst = kRows > kCacheTile ? row < kCacheTile : below < kCacheTile;
        global = side(values) + (isFirst ? first_ : second_) +
                 (below % kCacheTile + row % kCacheTile) * rowBytes + vector * 16;
      } else {
        global += kRows * rowBytes;
      }
      // Rows kRows apart change places by what `below` adds to their number.
      const int swap = (T::rowPlace(below, 0) - below * T::kRowBytes);
      to(target(values) + ((place ^ swap) + below * T::kRowBytes), global, below < visible);
    }
  }

  template <class To>
  __device__ __forceinline__ void scales(To to) const {
    constexpr int kPerSide = T::kScaleVectors;
    if (thread_ >= 2 * kPerSide) return;
    const bool values = thread_ >= kPerSide;
    const int at = thread_ % kPerSide;
    const bool isFirst = at < kPerSide / 2;
    const uint8_t* global = side(values) + (isFirst ? first_ : second_) +
                            kCacheTile * T::headDim(cache_) * T::kElementBytes +
                            (isFirst ? at : at - kPerSide / 2) * 16;
    to(target(values) + (T::kDataBytes + at * 16), global, isFirst || visible_ > kCacheTile);
  }

 private:
  __device__ __forceinline__ const uint8_t* side(bool values) const {
    return values ? cache_.values : cache_.keys;
  }
  __device__ __forceinline__ uint8_t* target(bool values) const {
    return stage_ + (values ? T::kSideBytes : 0);
  }

  const CacheView& cache_;
  uint8_t* stage_;
  int thread_;
  int visible_;
  int64_t first_;
  int64_t second_;
};

// kAmpere: begins to copy a tile.
template <class T>
__device__ __forceinline__ void copyTile(const HeadSlots& from, TileWalk& walk, uint8_t* stage, int slot) {
  const auto copy = [](void* shared, const void* global, bool valid) { copyAsync16(shared, global, valid); };
  using Pieces = TilePieces<T>;
  const Pieces pieces(from, walk, stage, slot);
  if (pieces.allVisible()) {
    pieces.template data<0, Pieces::kDataPieces, true>(false, copy);
    pieces.template data<0, Pieces::kDataPieces, true>(true, copy);
  } else {
    pieces.template data<0, Pieces::kDataPieces, false>(false, copy);
    pieces.template data<0, Pieces::kDataPieces, false>(true, copy);
  }
  if constexpr (T::kScaleVectors > 0) pieces.scales(copy);
}

// kTuring: copies pieces by way of registers, kHeld at a time; with more, a warp that is alone spills some.
template <class T, int kBegin = 0>
__device__ __forceinline__ void loadPieces(const TilePieces<T>& pieces, bool values) {
  constexpr int kMost = T::kWarps == 1 ? 4 : 8;
  constexpr int kHeld = TilePieces<T>::kDataPieces < kMost ? TilePieces<T>::kDataPieces : kMost;
  uint4 held[kHeld];
  int i = 0;
  pieces.template data<kBegin, kHeld, false>(values, [&](void*, const void* global, bool valid) {
    held[i++] = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
  });
  i = 0;
  pieces.template data<kBegin, kHeld, false>(
      values, [&](void* shared, const void*, bool) { *static_cast<uint4*>(shared) = held[i++]; });
  if constexpr (kBegin + kHeld < TilePieces<T>::kDataPieces) loadPieces<T, kBegin + kHeld>(pieces, values);
}

template <class T>
__device__ __forceinline__ void loadTile(const HeadSlots& from, TileWalk& walk, uint8_t* stage, int slot) {
  const TilePieces<T> pieces(from, walk, stage, slot);
  loadPieces<T>(pieces, false);
  loadPieces<T>(pieces, true);
  if constexpr (T::kScaleVectors > 0) {
    pieces.scales([](void* shared, const void* global, bool valid) {
      *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
    });
  }
}

}  // namespace glm_relay::cuda
