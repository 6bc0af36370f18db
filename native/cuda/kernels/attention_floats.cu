// Attention by float32 instructions: caches of float32, and what tensor cores do not take (usesTensorCores).
#include "cuda/kernels/attention_parts.h"

namespace glm_relay::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
// A lane is a key while scores are made, a dimension of the output while values are added.
constexpr int kTileSlots = kWarp;
// So many blocks find room on a multiprocessor, by registers; with more asked for, some kernels spill.
constexpr int kBlocksPerProcessor = 3;
constexpr int kQueriesPerWarp = kTaskQueries / kWarps;
static_assert(kPartSlots % kTileSlots == 0, "a part is whole tiles");

// Softmax sums over some keys: of 2^(score - max) * value and of 2^(score - max).
template <int kPerLane>
struct Sums {
  float max;
  float total;
  float out[kPerLane];

  __device__ __forceinline__ void clear() {
    max = minusInfinity();
    total = 0.0f;
    for (int i = 0; i < kPerLane; i++) out[i] = 0.0f;
  }
  // Adds those of the keys that follow.
  __device__ __forceinline__ void merge(const Sums& next) {
    const PartFactors factors(max, next.max);
    total = factors.sum(total, next.total);
    for (int i = 0; i < kPerLane; i++) out[i] = factors.sum(out[i], next.out[i]);
  }
};

// Shared memory: queries, 32 keys, each with a float more so that lanes meet in no bank, 32 values, and the
// weights of the keys for each query.
struct Shared {
  float* queries;
  float* keys;
  float* values;
  float* weights;

  __device__ __forceinline__ explicit Shared(int headDim)
      : queries(reinterpret_cast<float*>(sharedMemory())),
        keys(queries + kTaskQueries * headDim),
        values(keys + kTileSlots * (headDim + 1)),
        weights(values + kTileSlots * headDim) {}
};
size_t sharedBytes(int headDim) {
  return sizeof(float) *
         (kTaskQueries * headDim + kTileSlots * (2 * headDim + 1) + kTaskQueries * kTileSlots);
}

// Widens the slots [0, count) of a tile of the cache, in vectors of 16 bytes.
template <KvType Type>
__device__ __forceinline__ void loadTile(float* to, int stride, const uint8_t* tile, int headDim, int count) {
  using Element = CacheElement<Type>;
  constexpr int kPerVector = 16 / Element::kBytes;
  const int vectors = kCacheTile * headDim / kPerVector;
  for (int v = static_cast<int>(threadIdx.x); v < vectors; v += kThreads) {
    int slot = v * kPerVector / headDim;
    int d = v * kPerVector % headDim;
    if (slot >= count) continue;
    const uint4 loaded = *reinterpret_cast<const uint4*>(tile + static_cast<int64_t>(v) * 16);
    const auto* bytes = reinterpret_cast<const uint8_t*>(&loaded);
    float scale = 1.0f;
    for (int i = 0; i < kPerVector; i++) {
      if (Type == KvType::kInt8 && (i == 0 || d == 0)) {
        scale = halfValue(*reinterpret_cast<const uint16_t*>(tile + kCacheTile * headDim + 2 * slot));
      }
      const float value = Element::load(bytes + i * Element::kBytes);
      to[slot * stride + d] = Type == KvType::kInt8 ? value * scale : value;
      if (++d == headDim) {
        d = 0;
        slot++;
      }
    }
  }
}

// One block of threads: a task, up to kTaskQueries / rows heads of a KV head, and a part of the keys or all.
template <KvType Type, int kPerLane>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) attentionKernel(const AttentionArgs args) {
  enterKernel();
  const CacheView& cache = args.cache;
  const int headDim = cache.headDim;
  const CacheLayout layout = layoutOf(cache);
  const AttentionTask task = taskOfBlock(args);
  const int firstPart = static_cast<int>(blockIdx.z);
  if (firstPart * kPartSlots > task.lastVisible) return;

  const BlockHeads heads(cache);
  const int queryCount = task.rowCount * heads.count;
  const int32_t* table = cache.tables + task.table;
  const float scale = kLog2E / sqrtf(static_cast<float>(headDim));
  const int lane = laneOfThread();
  const int warp = warpOfThread();

  const Shared shared(headDim);
  for (int i = static_cast<int>(threadIdx.x); i < queryCount * headDim; i += kThreads) {
    const int query = i / headDim;
    const int64_t row = task.row + query / heads.count;
    const int head = heads.first + query % heads.count;
    shared.queries[i] = args.queries[(row * cache.headCount + head) * headDim + i % headDim];
  }

  Sums<kPerLane> whole[kQueriesPerWarp];
  Sums<kPerLane> part[kQueriesPerWarp];
  int lastVisible[kQueriesPerWarp];
#pragma unroll
  for (int q = 0; q < kQueriesPerWarp; q++) {
    const int query = warp + q * kWarps;
    lastVisible[q] = query < queryCount ? args.lastVisibleOfRow[task.row + query / heads.count] : -1;
    whole[q].clear();
  }

  const int endSlot = args.partials ? (firstPart + 1) * kPartSlots : task.lastVisible + 1;
  for (int slot = firstPart * kPartSlots; slot < endSlot && slot <= task.lastVisible; slot += kTileSlots) {
    if (slot % kPartSlots == 0) {
#pragma unroll
      for (int q = 0; q < kQueriesPerWarp; q++) part[q].clear();
    }
    // All have used the tile before.
    __syncthreads();
    for (int i = 0; i < kTileSlots / kCacheTile; i++) {
      const int visible = task.lastVisible - slot - i * kCacheTile + 1;
      if (visible <= 0) continue;
      const int64_t offset = layout.tileOffset(table, slot / kCacheTile + i, heads.kvHead);
      loadTile<Type>(shared.keys + i * kCacheTile * (headDim + 1), headDim + 1, cache.keys + offset, headDim,
                     visible);
      loadTile<Type>(shared.values + i * kCacheTile * headDim, headDim, cache.values + offset, headDim,
                     visible);
    }
    __syncthreads();

    const bool endsPart = (slot + kTileSlots) % kPartSlots == 0;
#pragma unroll
    for (int q = 0; q < kQueriesPerWarp; q++) {
      if (lastVisible[q] >= slot) {
        const float* query = shared.queries + (warp + q * kWarps) * headDim;
        const float* key = shared.keys + lane * (headDim + 1);
        // Keys that the row does not see may hold anything.
        const int visible = lastVisible[q] - slot + 1 < kTileSlots ? lastVisible[q] - slot + 1 : kTileSlots;
        float score = minusInfinity();
        if (lane < visible) {
          float dot = 0.0f;
          for (int d = 0; d < headDim; d++) dot = fmaf(query[d], key[d], dot);
          score = dot * scale;
        }
        const float max = fmaxf(part[q].max, warpMax(score));
        const float kept = exp2Fast(part[q].max - max);
        const float weight = lane < visible ? exp2Fast(score - max) : 0.0f;
        part[q].max = max;
        part[q].total = fmaf(part[q].total, kept, warpSum(weight));
        float* weights = shared.weights + (warp + q * kWarps) * kTileSlots;
        weights[lane] = weight;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kPerLane; i++) {
          const int d = lane + i * kWarp;
          if (d >= headDim) continue;
          float out = part[q].out[i] * kept;
          for (int j = 0; j < visible; j++) out = fmaf(weights[j], shared.values[j * headDim + d], out);
          part[q].out[i] = out;
        }
      }
      const int first = slot / kPartSlots * kPartSlots;
      if (lastVisible[q] >= first && !args.partials && (endsPart || slot + kTileSlots > task.lastVisible)) {
        whole[q].merge(part[q]);
      }
    }
  }

#pragma unroll
  for (int q = 0; q < kQueriesPerWarp; q++) {
    const int query = warp + q * kWarps;
    if (query >= queryCount || lastVisible[q] < firstPart * kPartSlots) continue;
    const int64_t row = task.row + query / heads.count - args.firstRow;
    const int64_t at = row * cache.headCount + heads.first + query % heads.count;
    if (args.partials == nullptr) {
      for (int i = 0; i < kPerLane; i++) {
        const int d = lane + i * kWarp;
        if (d < headDim) args.out[at * headDim + d] = whole[q].out[i] * (1.0f / whole[q].total);
      }
      continue;
    }
    float* to = partialOf(args, at, firstPart);
    if (lane == 0) {
      to[0] = part[q].max;
      to[1] = part[q].total;
    }
    for (int i = 0; i < kPerLane; i++) {
      const int d = lane + i * kWarp;
      if (d < headDim) to[2 + d] = part[q].out[i];
    }
  }
}

template <KvType Type, int kPerLane>
void start(cudaStream_t stream, const AttentionArgs& args) {
  launch(attentionKernel<Type, kPerLane>, attentionGrid(args), kThreads, sharedBytes(args.cache.headDim),
         stream, args);
}

template <KvType Type>
void startOfType(cudaStream_t stream, const AttentionArgs& args) {
  if (args.cache.headDim <= 32) return start<Type, 1>(stream, args);
  if (args.cache.headDim <= 64) return start<Type, 2>(stream, args);
  start<Type, 4>(stream, args);
}

}  // namespace

void attentionInFloats(cudaStream_t stream, const AttentionArgs& args) {
  switch (args.cache.type) {
    case KvType::kFloat32:
      return startOfType<KvType::kFloat32>(stream, args);
    case KvType::kFloat16:
      return startOfType<KvType::kFloat16>(stream, args);
    case KvType::kBfloat16:
      return startOfType<KvType::kBfloat16>(stream, args);
    case KvType::kInt8:
      return startOfType<KvType::kInt8>(stream, args);
  }
}

}  // namespace glm_relay::cuda
