#include "cuda/kernels/attention_queries.h"

namespace glm_relay::cuda {

namespace {

// Warps that find room on a multiprocessor, by registers.
constexpr int kWarpsPerProcessor = 8;
constexpr int kSlots = 2 * kCacheTile;
static_assert(kPartSlots % kSlots == 0, "a part is whole tiles");

// Weights are 2^(score - reference + kWeightExponent). The reference of a row is a score that no score so far
// lies more than kReferenceSlack above, so that sums are seldom multiplied anew; and weights use FP16's
// range, up to 2^15.
constexpr float kWeightExponent = 8.0f;
constexpr float kReferenceSlack = 7.0f;

// Whether a zero has a sign may depend on slots that the row does not see.
__device__ __forceinline__ float unsignedZero(float x) { return x + 0.0f; }

// The lanes of a quad have the same rows.
__device__ __forceinline__ float quadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quadSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <class T>
struct Sums {
  static constexpr int kTiles = T::kDim / 8;
  float reference[2];
  float total[2];  // of the lane's slots
  float out[kTiles][4];

  __device__ __forceinline__ void clear() {
    for (int row = 0; row < 2; row++) {
      reference[row] = minusInfinity();
      total[row] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kTiles; i++) {
      for (int c = 0; c < 4; c++) out[i][c] = 0.0f;
    }
  }
};

// products[i]: of 16 queries and the keys of slots 8 i on. Places are in shared memory.
template <class T>
__device__ __forceinline__ void multiplyKeys(float (&products)[4][4], const uint8_t* shared, int queries,
                                             int keys) {
  using Fragments = KeyFragments<T>;
  const int queryPlace = queries + queryPlaceOfLane<T>(laneOfThread());
  const int keyPlace = keys + keyPlaceOfLane<T>(laneOfThread());
#pragma unroll
  for (int i = 0; i < 4; i++) {
    for (int c = 0; c < 4; c++) products[i][c] = 0.0f;
  }
#pragma unroll
  for (int first = 0; first < T::kDim / 16; first += Fragments::kSteps) {
    uint32_t a[Fragments::kSteps][T::kQueryParts][4];
#pragma unroll
    for (int step = 0; step < Fragments::kSteps; step++) {
#pragma unroll
      for (int part = 0; part < T::kQueryParts; part++) {
        loadMatrices(a[step][part],
                     shared + ((queryPlace ^ 32 * (first + step)) + part * T::kQueryPartBytes));
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Fragments fragments(shared +
                                ((keyPlace ^ 32 * (first / Fragments::kSteps)) + half * 16 * T::kRowBytes));
#pragma unroll
      for (int step = 0; step < Fragments::kSteps; step++) {
#pragma unroll
        for (int part = 0; part < T::kQueryParts; part++) {
          multiplyTile<T>(products[2 * half], a[step][part], fragments.b[step][0]);
          multiplyTile<T>(products[2 * half + 1], a[step][part], fragments.b[step][1]);
        }
      }
    }
  }
}

// Turns products into weights, and the sums so far to the reference that these need.
template <class T>
__device__ __forceinline__ void weigh(float (&products)[4][4], Sums<T>& sums, const LaneRows& rows,
                                      const uint8_t* keys, int slot) {
  const int column = laneOfThread() % 4 * 2;
  if constexpr (T::kType == KvType::kInt8) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t scales = T::scalePair(keys, 8 * i + column);
      const float first = halfValue(static_cast<uint16_t>(scales));
      const float second = halfValue(static_cast<uint16_t>(scales >> 16));
      for (int c = 0; c < 4; c++) products[i][c] *= c % 2 == 0 ? first : second;
    }
  }
  if (slot + kSlots - 1 > rows.lastVisible[0] || slot + kSlots - 1 > rows.lastVisible[1]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      for (int c = 0; c < 4; c++) {
        if (slot + 8 * i + column + c % 2 > rows.lastVisible[c / 2]) products[i][c] = minusInfinity();
      }
    }
  }
  float kept[2];
#pragma unroll
  for (int row = 0; row < 2; row++) {
    float largest = products[0][2 * row];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      largest = fmaxf(largest, fmaxf(products[i][2 * row], products[i][2 * row + 1]));
    }
    largest = quadMax(largest) * rows.scale[row];
    kept[row] = 1.0f;
    if (largest > sums.reference[row] + kReferenceSlack) {
      kept[row] = exp2Fast(sums.reference[row] - largest);
      sums.reference[row] = largest;
    }
    const float reference = sums.reference[row];
    // A row that has seen nothing yet has weights 0.
    const float base = reference == minusInfinity() ? 0.0f : kWeightExponent - reference;
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      for (int c = 2 * row; c < 2 * row + 2; c++) {
        products[i][c] = exp2Fast(fmaf(products[i][c], rows.scale[row], base));
        total += products[i][c];
      }
    }
    sums.total[row] = fmaf(sums.total[row], kept[row], total);
  }
  if (__any_sync(0xffffffffu, kept[0] != 1.0f || kept[1] != 1.0f)) {
#pragma unroll
    for (int i = 0; i < Sums<T>::kTiles; i++) {
      for (int c = 0; c < 4; c++) sums.out[i][c] *= kept[c / 2];
    }
  }
}

template <class T>
__device__ __forceinline__ void addValues(Sums<T>& sums, const float (&weights)[4][4], const uint8_t* shared,
                                          int values, int visible) {
  using Fragments = ValueFragments<T>;
  const int place = values + valuePlaceOfLane<T>(laneOfThread());
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t a[T::kQueryParts][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float low = weights[2 * half + i / 2][i % 2 * 2];
      const float high = weights[2 * half + i / 2][i % 2 * 2 + 1];
      a[0][i] = packPair<T>(low, high);
      if constexpr (T::kQueryParts == 2) a[1][i] = packRest(a[0][i], low, high);
    }
    uint32_t scales[2] = {0, 0};
    if constexpr (T::kType == KvType::kInt8) {
      for (int i = 0; i < 2; i++) {
        const int slot = 16 * half + 8 * i + laneOfThread() % 4 * 2;
        // Those of slots that nobody sees may be anything.
        const uint32_t seen = slot + 1 < visible ? 0xffffffffu : slot < visible ? 0xffffu : 0u;
        scales[i] = T::scalePair(shared + values, slot) & seen;
      }
    }
#pragma unroll
    for (int tile = 0; tile < Sums<T>::kTiles; tile += Fragments::kTiles) {
      const Fragments fragments(
          shared + ((place ^ 32 * (tile / Fragments::kTiles)) + half * 16 * T::kRowBytes), scales);
#pragma unroll
      for (int part = 0; part < T::kQueryParts; part++) {
#pragma unroll
        for (int i = 0; i < Fragments::kTiles; i++) {
          multiplyTile<T>(sums.out[tile + i], a[part], fragments.b[i]);
        }
      }
    }
  }
}

// Of a lane's two rows.
struct Totals {
  float of[2];
  template <class T>
  __device__ __forceinline__ explicit Totals(const Sums<T>& sums)
      : of{quadSum(sums.total[0]), quadSum(sums.total[1])} {}
};

// Writes a row's sums to `to`, each as change() makes it.
template <class T, class Change>
__device__ __forceinline__ void storeSums(float* to, const Sums<T>& sums, int row, const AttentionArgs& args,
                                          Change change) {
  using Pair = SumPair<T::kType>;
  const int first = Pair::ofLane(laneOfThread());
#pragma unroll
  for (int i = 0; i < Sums<T>::kTiles; i++) {
    if (!T::kExact && first + Pair::ofPair(i) >= args.cache.headDim) continue;
    *reinterpret_cast<float2*>(to + first + Pair::ofPair(i)) = {change(Pair::low(sums.out, row, i)),
                                                                change(Pair::high(sums.out, row, i))};
  }
}

// Leaves a part to be put together with the others.
template <class T>
__device__ __forceinline__ void storePart(const Sums<T>& sums, const AttentionArgs& args,
                                          const LaneRows& rows, int part) {
  const Totals totals(sums);
#pragma unroll
  for (int row = 0; row < 2; row++) {
    if (rows.lastVisible[row] < part * kPartSlots) continue;
    float* to = partialOf(args, rows.rowHead[row], part);
    if (laneOfThread() % 4 == 0) *reinterpret_cast<float2*>(to) = {sums.reference[row], totals.of[row]};
    storeSums(to + 2, sums, row, args, unsignedZero);
  }
}

// Adds a part to those before it.
template <class T>
__device__ __forceinline__ void mergePart(Sums<T>& whole, const Sums<T>& sums, const LaneRows& rows,
                                          int part) {
  const Totals totals(sums);
#pragma unroll
  for (int row = 0; row < 2; row++) {
    if (rows.lastVisible[row] < part * kPartSlots) continue;
    const PartFactors factors(whole.reference[row], sums.reference[row]);
    whole.total[row] = factors.sum(whole.total[row], totals.of[row]);
#pragma unroll
    for (int i = 0; i < Sums<T>::kTiles; i++) {
      for (int c = 2 * row; c < 2 * row + 2; c++) {
        whole.out[i][c] = factors.sum(whole.out[i][c], unsignedZero(sums.out[i][c]));
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void storeWhole(const Sums<T>& whole, const AttentionArgs& args,
                                           const LaneRows& rows) {
#pragma unroll
  for (int row = 0; row < 2; row++) {
    if (rows.lastVisible[row] < 0) continue;
    const float inverse = 1.0f / whole.total[row];
    storeSums(args.out + static_cast<int64_t>(rows.rowHead[row]) * T::headDim(args.cache), whole, row, args,
              [&](float sum) { return sum * inverse; });
  }
}

// One block: a task, heads of a KV head, and a part of the keys or all, one part after the other.
template <class T>
__global__ void __launch_bounds__(T::kThreads, kWarpsPerProcessor / T::kWarps)
    attentionMmaKernel(const AttentionArgs args) {
  enterKernel();
  const AttentionTask task = taskOfBlock(args);
  const bool isWide = task.rowCount > attentionTaskRows(args.cache.headCount, args.cache.kvHeadCount);
  const int firstPart = static_cast<int>(blockIdx.z);
  if (isWide != (T::kWarps > 1) || firstPart * kPartSlots > task.lastVisible) return;

  const BlockHeads heads(args.cache);
  const HeadSlots slots = {args.cache, args.cache.tables + task.table, heads.kvHead, task.lastVisible};
  int lastSlot = task.lastVisible;
  if (args.partials != nullptr && lastSlot >= (firstPart + 1) * kPartSlots) {
    lastSlot = (firstPart + 1) * kPartSlots - 1;
  }
  uint8_t* shared = sharedMemory();
  TileWalk walk(args.cache, firstPart * kPartSlots / kCacheTile);
  const auto stageOf = [](int slot) {
    return T::kStages == 1 ? computedAnew(0) : slot / kSlots % T::kStages * T::kStageBytes;
  };
  const auto begin = [&](int slot) {
    if constexpr (T::kPath == Path::kAmpere) {
      if (slot <= lastSlot) copyTile<T>(slots, walk, shared + stageOf(slot), slot);
      commitCopies();
    }
  };
  for (int i = 0; i < T::kStages - 1; i++) begin(firstPart * kPartSlots + i * kSlots);

  const int queries = T::kQueriesBegin + warpOfThread() * T::kQueryBytes;
  LaneRows rows = rowsOfLane(args, task, heads);
  loadQueries<T>(shared + queries, args, task, heads, rows);

  Sums<T> whole;
  whole.clear();
  for (int part = firstPart; part * kPartSlots <= lastSlot; part++) {
    Sums<T> sums;
    sums.clear();
    const int end = lastSlot < (part + 1) * kPartSlots ? lastSlot + 1 : (part + 1) * kPartSlots;
    for (int slot = part * kPartSlots; slot < end; slot += kSlots) {
      if constexpr (T::kPath == Path::kAmpere) {
        waitCopies<T::kStages - 2>();
        // Now the tile is there for all, and the one before, which the next copies overwrite, has been read.
        __syncthreads();
        begin(slot + (T::kStages - 1) * kSlots);
      } else {
        // All have read the tile before.
        __syncthreads();
        loadTile<T>(slots, walk, shared + stageOf(slot), slot);
        __syncthreads();
      }
      // A tile that none of the warp's rows sees would change none of them.
      if (slot > rows.highestVisible) continue;
      const int keys = stageOf(slot);
      float products[4][4];
      multiplyKeys<T>(products, shared, queries, keys);
      weigh<T>(products, sums, rows, shared + keys, slot);
      addValues<T>(sums, products, shared, keys + T::kSideBytes, task.lastVisible - slot + 1);
    }
    if (args.partials == nullptr) {
      mergePart<T>(whole, sums, rows, part);
    } else {
      storePart<T>(sums, args, rows, part);
    }
  }
  if (args.partials == nullptr) storeWhole<T>(whole, args, rows);
}

template <class T>
void startTile(cudaStream_t stream, const AttentionArgs& args) {
  launch(attentionMmaKernel<T>, attentionGrid(args), T::kThreads, T::kSharedBytes, stream, args);
}

template <Path kPath, KvType kType, int kDim, bool kExact>
void startOfDim(cudaStream_t stream, const AttentionArgs& args) {
  if (args.wideTasks < args.taskCount) startTile<AttentionTile<kPath, kType, kDim, kExact, 1>>(stream, args);
  if (args.wideTasks > 0) startTile<AttentionTile<kPath, kType, kDim, kExact, kWideWarps>>(stream, args);
}

template <Path kPath, KvType kType>
void startOfType(cudaStream_t stream, const AttentionArgs& args) {
  if (args.cache.headDim <= 64) return startOfDim<kPath, kType, 64, false>(stream, args);
  if constexpr (kPath == Path::kAmpere) {
    if (args.cache.headDim < 128) return startOfDim<kPath, kType, 128, false>(stream, args);
  }
  startOfDim<kPath, kType, 128, true>(stream, args);
}

template <Path kPath>
void startOfPath(cudaStream_t stream, const AttentionArgs& args) {
  if (args.cache.type == KvType::kInt8) return startOfType<kPath, KvType::kInt8>(stream, args);
  if constexpr (kPath == Path::kAmpere) {
    if (args.cache.type == KvType::kBfloat16) return startOfType<kPath, KvType::kBfloat16>(stream, args);
  }
  startOfType<kPath, KvType::kFloat16>(stream, args);
}

template <Path kPath, KvType kType, int kDim, bool kExact>
void prepareDim() {
  const auto prepare = [](auto tile) {
    using T = decltype(tile);
    cudaFuncSetAttribute(attentionMmaKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  };
  prepare(AttentionTile<kPath, kType, kDim, kExact, 1>{});
  prepare(AttentionTile<kPath, kType, kDim, kExact, kWideWarps>{});
}

template <Path kPath, KvType kType>
void prepareType() {
  prepareDim<kPath, kType, 64, false>();
  if constexpr (kPath == Path::kAmpere) prepareDim<kPath, kType, 128, false>();
  prepareDim<kPath, kType, 128, true>();
}

}  // namespace

void prepareAttention(Path path) {
  prepareType<Path::kTuring, KvType::kFloat16>();
  prepareType<Path::kTuring, KvType::kInt8>();
  if (path != Path::kAmpere) return;
  prepareType<Path::kAmpere, KvType::kFloat16>();
  prepareType<Path::kAmpere, KvType::kBfloat16>();
  prepareType<Path::kAmpere, KvType::kInt8>();
}

void attentionOnTensorCores(cudaStream_t stream, Path path, const AttentionArgs& args) {
  if (path == Path::kAmpere) return startOfPath<Path::kAmpere>(stream, args);
  startOfPath<Path::kTuring>(stream, args);
}

}  // namespace glm_relay::cuda
