#include "cuda/kernels/device.h"
#include "cuda/kernels/experts.h"

namespace glm_relay::cuda {

namespace {

// Of the block that groups rows.
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
// Warps of a block of rows that choose by themselves.
constexpr int kChoiceWarps = 4;
// Up to so many rows one block chooses and groups: with more of them its warps would wait for each other.
constexpr int kFewRows = 2 * kWarps;

// As model/router.cc has them.
__device__ __forceinline__ float out() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float lowest() { return __uint_as_float(0xff7fffffu); }

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float scoreOf(float sigmoid, float bias) {
  const float score = sigmoid + bias;
  return score != score ? lowest() : score;
}

// The lowest index of the largest value, in every lane. Value i is lane i % 32's: others need not see it.
__device__ __forceinline__ int indexOfLargest(const float* values, int count) {
  int index = laneOfThread();
  float largest = out();
  for (int i = laneOfThread(); i < count; i += kWarp) {
    if (values[i] > largest) {
      largest = values[i];
      index = i;
    }
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, largest, mask);
    const int itsIndex = __shfl_xor_sync(0xffffffffu, index, mask);
    if (other > largest || (other == largest && itsIndex < index)) {
      largest = other;
      index = itsIndex;
    }
  }
  return index;
}

// As good as the two best experts of a group, or as its only one.
__device__ __forceinline__ float groupScore(const float* members, int size) {
  float first = out();
  float second = out();
  for (int i = 0; i < size; i++) {
    if (members[i] > first) {
      second = first;
      first = members[i];
    } else if (members[i] > second) {
      second = members[i];
    }
  }
  if (size == 1) return first;
  const float sum = first + second;
  return sum > lowest() ? sum : lowest();
}

// Shared memory that a warp needs to choose: scores of experts, scores of groups, what is chosen.
__host__ __device__ __forceinline__ int choiceWords(const ExpertShape& shape) {
  return shape.count + shape.groups + shape.perToken;
}

__device__ __forceinline__ void maskGroups(float* scores, float* groupScores, const ExpertShape& shape) {
  const int size = shape.count / shape.groups;
  // The scores of all lanes are there.
  __syncwarp();
  for (int group = laneOfThread(); group < shape.groups; group += kWarp) {
    groupScores[group] = groupScore(scores + group * size, size);
  }
  uint64_t kept = 0;
  for (int i = 0; i < shape.groupsPerToken; i++) {
    const int best = indexOfLargest(groupScores, shape.groups);
    if (best % kWarp == laneOfThread()) groupScores[best] = out();
    kept |= uint64_t{1} << best;
  }
  for (int i = laneOfThread(); i < shape.count; i += kWarp) {
    if ((kept >> (i / size) & 1) == 0) scores[i] = out();
  }
}

// By one warp.
__device__ __forceinline__ void chooseForRow(const RouterArgs& args, int row, float* shared) {
  const ExpertShape& shape = args.shape;
  const int lane = laneOfThread();
  const float* logits = args.logits + static_cast<int64_t>(row) * shape.count;
  float* scores = shared;
  int32_t* experts = reinterpret_cast<int32_t*>(shared + shape.count + shape.groups);
  for (int i = lane; i < shape.count; i += kWarp) scores[i] = scoreOf(sigmoid(logits[i]), args.bias[i]);
  if (shape.groupsPerToken < shape.groups) maskGroups(scores, scores + shape.count, shape);

  float sum = 0.0f;
  for (int rank = 0; rank < shape.perToken; rank++) {
    const int expert = indexOfLargest(scores, shape.count);
    sum += sigmoid(logits[expert]);
    if (expert % kWarp == lane) scores[expert] = out();
    if (lane == 0) experts[rank] = expert;
  }
  __syncwarp();
  for (int rank = lane; rank < shape.perToken; rank += kWarp) {
    float weight = sigmoid(logits[experts[rank]]);
    if (shape.normalizeWeights) weight = weight / (sum + 1e-20f);
    args.chosen[static_cast<int64_t>(row) * shape.perToken + rank] = {
        experts[rank], weight * static_cast<float>(shape.scale)};
  }
}

__global__ void __launch_bounds__(kChoiceWarps* kWarp) chooseKernel(const RouterArgs args) {
  enterKernel();
  const int row = static_cast<int>(blockIdx.x) * kChoiceWarps + warpOfThread();
  if (row >= args.rows) return;
  chooseForRow(args, row,
               reinterpret_cast<float*>(sharedMemory()) + warpOfThread() * choiceWords(args.shape));
}

__host__ __device__ __forceinline__ int maskWords(int rows) { return (rows + 31) / 32; }

// By one block. Which rows an expert has is a set of bits, which is the same in whatever order they are set;
// a row's place is how many of them are below its own.
__device__ __forceinline__ void group(const RouterArgs& args, const GroupArgs& to) {
  const int thread = static_cast<int>(threadIdx.x);
  const int count = args.shape.count;
  const int perToken = args.shape.perToken;
  const int choices = args.rows * perToken;
  const int words = maskWords(args.rows);
  uint32_t* masks = reinterpret_cast<uint32_t*>(sharedMemory());        // [experts, words]
  int32_t* rowsOf = reinterpret_cast<int32_t*>(masks + count * words);  // [experts]
  int32_t* firstOf = rowsOf + count;                                    // [experts]
  int32_t* tilesUsed = firstOf + count;

  for (int i = thread; i < count * words; i += kThreads) masks[i] = 0;
  for (int i = thread; i < to.slots; i += kThreads) to.rowOfSlot[i] = -1;
  __syncthreads();
  for (int i = thread; i < choices; i += kThreads) {
    const int row = i / perToken;
    atomicOr(masks + args.chosen[i].expert * words + row / 32, 1u << (row % 32));
  }
  __syncthreads();
  for (int expert = thread; expert < count; expert += kThreads) {
    int rows = 0;
    for (int word = 0; word < words; word++) rows += __popc(masks[expert * words + word]);
    rowsOf[expert] = rows;
  }
  __syncthreads();
  for (int expert = thread; expert < count; expert += kThreads) {
    int first = 0;
    int tile = 0;
    for (int before = 0; before < expert; before++) {
      first += (rowsOf[before] + kTileRows - 1) / kTileRows * kTileRows;
      tile += (rowsOf[before] + to.tileRows - 1) / to.tileRows;
    }
    firstOf[expert] = first;
    for (int done = 0; done < rowsOf[expert]; done += to.tileRows) {
      const int left = rowsOf[expert] - done;
      to.tiles[tile++] = {expert, first + done, left < to.tileRows ? left : to.tileRows};
    }
    if (expert == count - 1) *tilesUsed = tile;
  }
  __syncthreads();
  for (int tile = *tilesUsed + thread; tile < to.tileCount; tile += kThreads) to.tiles[tile] = {0, 0, 0};
  for (int i = thread; i < choices; i += kThreads) {
    const ChosenExpert chosen = args.chosen[i];
    const int row = i / perToken;
    const uint32_t* mask = masks + chosen.expert * words;
    int slot = firstOf[chosen.expert] + __popc(mask[row / 32] & ((1u << (row % 32)) - 1u));
    for (int word = 0; word < row / 32; word++) slot += __popc(mask[word]);
    to.parts[i] = {slot, chosen.weight};
    to.rowOfSlot[slot] = row;
  }
}

__global__ void __launch_bounds__(kThreads, 1) groupKernel(const RouterArgs args, const GroupArgs to) {
  enterKernel();
  group(args, to);
}

__global__ void __launch_bounds__(kThreads, 1)
    chooseAndGroupKernel(const RouterArgs args, const GroupArgs to) {
  enterKernel();
  float* shared = reinterpret_cast<float*>(sharedMemory()) + warpOfThread() * choiceWords(args.shape);
  for (int row = warpOfThread(); row < args.rows; row += kWarps) {
    chooseForRow(args, row, shared);
  }
  __syncthreads();
  group(args, to);
}

__host__ __device__ __forceinline__ int vectorsPerTile(const HalfRows& rows) {
  return rows.paddedColumns / kQuarterColumns * kWarp;
}

// One block per tile of slots and as many vectors (halfIndex()) as it has threads: a vector is one row's.
__global__ void gatherHalvesKernel(const HalfRows to, const HalfRows from) {
  enterKernel();
  const int vector = static_cast<int>(blockIdx.x) * kRowThreads + static_cast<int>(threadIdx.x);
  if (vector >= vectorsPerTile(to)) return;
  const int tile = static_cast<int>(blockIdx.y);
  const int slot = tile * kTileRows + vector % kWarp / 4;
  const int row = to.owners[slot];
  if (row < 0) return;
  const int source = vector / kWarp * kWarp + row % kTileRows * 4 + vector % 4;
  reinterpret_cast<uint4*>(to.halves)[static_cast<int64_t>(tile) * vectorsPerTile(to) + vector] =
      reinterpret_cast<const uint4*>(
          from.halves)[static_cast<int64_t>(row / kTileRows) * vectorsPerTile(to) + source];
  if (vector < kWarp && vector % 4 == 0) to.scales[slot] = from.scales[row];
}

// One block per row and as many columns as it has threads.
__global__ void mixKernel(float* y, const float* parts, const ExpertPart* chosen, int perToken, int size) {
  enterKernel();
  const int64_t row = blockIdx.y;
  const int column = static_cast<int>(blockIdx.x) * kRowThreads + static_cast<int>(threadIdx.x);
  if (column >= size) return;
  const ExpertPart* ofRow = chosen + row * perToken;
  float sum = 0.0f;
  for (int rank = 0; rank < perToken; rank++) {
    sum = fmaf(parts[static_cast<int64_t>(ofRow[rank].slot) * size + column], ofRow[rank].weight, sum);
  }
  y[row * size + column] = sum;
}

unsigned int blocksOf(int count) {
  return static_cast<unsigned int>((count + kRowThreads - 1) / kRowThreads);
}

int64_t choiceBytes(const ExpertShape& shape, int warps) {
  return static_cast<int64_t>(warps) * choiceWords(shape) * static_cast<int64_t>(sizeof(float));
}

int64_t groupBytes(int rows, const ExpertShape& shape) {
  return (static_cast<int64_t>(shape.count) * (maskWords(rows) + 2) + 1) *
         static_cast<int64_t>(sizeof(int32_t));
}

}  // namespace

int64_t groupSharedBytes(int rows, const ExpertShape& shape) {
  const int64_t choosing = choiceBytes(shape, kWarps);
  const int64_t grouping = groupBytes(rows, shape);
  return choosing > grouping ? choosing : grouping;
}

int expertTiles(int rows, const ExpertShape& shape, int tileRows) {
  const int slots = rows * shape.perToken;
  const int experts = shape.count < slots ? shape.count : slots;
  // No expert has more rows than there are, and each leaves at most one tile that is not full.
  return rows <= tileRows ? experts : (slots + experts * (tileRows - 1)) / tileRows;
}

void chooseExperts(cudaStream_t stream, const RouterArgs& args) {
  launch(chooseKernel, dim3{static_cast<unsigned int>((args.rows + kChoiceWarps - 1) / kChoiceWarps), 1, 1},
         kChoiceWarps * kWarp, static_cast<size_t>(choiceBytes(args.shape, kChoiceWarps)), stream, args);
}

void groupByExpert(cudaStream_t stream, const RouterArgs& args, const GroupArgs& group) {
  launch(groupKernel, dim3{1, 1, 1}, kThreads, static_cast<size_t>(groupBytes(args.rows, args.shape)), stream,
         args, group);
}

void chooseAndGroup(cudaStream_t stream, const RouterArgs& args, const GroupArgs& group) {
  if (args.rows > kFewRows) {
    chooseExperts(stream, args);
    groupByExpert(stream, args, group);
    return;
  }
  launch(chooseAndGroupKernel, dim3{1, 1, 1}, kThreads,
         static_cast<size_t>(groupSharedBytes(args.rows, args.shape)), stream, args, group);
}

void gatherHalves(cudaStream_t stream, const HalfRows& to, const HalfRows& from, int slots) {
  const dim3 grid{blocksOf(vectorsPerTile(to)), static_cast<unsigned int>(slots / kTileRows), 1};
  launch(gatherHalvesKernel, grid, kRowThreads, 0, stream, to, from);
}

void mixParts(cudaStream_t stream, float* y, const float* parts, const ExpertPart* chosen, int rows,
              int perToken, int size) {
  launch(mixKernel, dim3{blocksOf(size), static_cast<unsigned int>(rows), 1}, kRowThreads, 0, stream, y,
         parts, chosen, perToken, size);
}

}  // namespace glm_relay::cuda
