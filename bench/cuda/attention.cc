// Attention over a paged cache, through the backend: decode of long contexts as a share of the copy
// bandwidth, prompts as a share of the matrix instructions' peak.
#include <algorithm>
#include <cstdio>

#include "cuda/cuda_backend.h"
#include "measure.h"

namespace glm_relay::cuda {

namespace {

constexpr int kTilesPerBlock = 4;
constexpr int kBlockSlots = kTilesPerBlock * kKeyTile;
constexpr int kMaxRows = 512;

struct Heads {
  const char* name;
  int headCount;
  int kvHeadCount;
  int headDim;
};
const Heads kHeads[] = {{"6B, 9B", 32, 2, 128}, {"GLM-130B", 96, 96, 128}};
struct Cache {
  const char* name;
  KvType type;
};
const Cache kCaches[] = {{"float16", KvType::kFloat16}, {"int8", KvType::kInt8}};
// Sequences, rows of each in this step, slots before them.
struct Load {
  const char* name;
  int sequences;
  int rows;
  int before;
};
const Load kLoads[] = {{"1 x 1 after 8192", 1, 1, 8191},    {"8 x 1 after 8192", 8, 1, 8191},
                       {"8 x 1 after 2048", 8, 1, 2047},    {"32 x 1 after 1024", 32, 1, 1023},
                       {"512 rows of a prompt", 1, 512, 0}, {"512 rows after 1536", 1, 512, 1536}};

class AttentionLoad {
 public:
  AttentionLoad(Path path, const Heads& heads, const Cache& cache, const Load& load)
      : heads_(heads),
        load_(load),
        pool_(1, progress_),
        backend_(0, path, "bench", kScalarKernels, pool_, progress_) {
    KvPlan plan = {};
    plan.type = cache.type;
    plan.layerCount = 1;
    const int blocks = (load.before + load.rows + kBlockSlots - 1) / kBlockSlots;
    plan.blockCount = blocks * load.sequences;
    plan.tilesPerBlock = kTilesPerBlock;
    plan.headCount = heads.headCount;
    plan.kvHeadCount = heads.kvHeadCount;
    plan.headDim = heads.headDim;
    plan.ropeDim = heads.headDim / 2;
    plan.ropeAxes = 1;
    backend_.allocateKvCache(plan);
    backend_.reserveRows(kMaxRows, kMaxRows, heads.headCount * heads.headDim);
    const int columns = heads.headCount * heads.headDim;
    queries_ = backend_.allocate(static_cast<uint64_t>(kMaxRows) * columns * sizeof(float));
    out_ = backend_.allocate(static_cast<uint64_t>(kMaxRows) * columns * sizeof(float));
    qkv_ =
        backend_.allocate(static_cast<uint64_t>(kMaxRows) * (columns + 2 * plan.kvColumns()) * sizeof(float));
    fill(*qkv_);
    std::vector<SequenceRows> sequences;
    for (int i = 0; i < load.sequences; i++) {
      SequenceRows sequence = {load.rows, load.before, 0, -1, {}};
      for (int block = 0; block < blocks; block++) sequence.blockTable.push_back(i * blocks + block);
      sequences.push_back(sequence);
    }
    // Every slot holds finite numbers: the cache is filled by steps of its own.
    for (int slot = 0; slot < load.before; slot += kMaxRows) {
      for (SequenceRows& sequence : sequences) {
        sequence.startPosition = slot;
        sequence.rowCount = std::min(kMaxRows, load.before - slot);
        begin({sequence});
        backend_.storeKeysValues(*queries_, *qkv_, 0, 0, sequence.rowCount, {});
        idle();
      }
    }
    for (SequenceRows& sequence : sequences) {
      sequence.startPosition = load.before;
      sequence.rowCount = load.rows;
    }
    begin(sequences);
    backend_.storeKeysValues(*queries_, *qkv_, 0, 0, rows(), {});
    cacheBytes_ = 2.0 * plan.tileBytes() * plan.kvHeadCount * load.sequences *
                  ((load.before + load.rows + kKeyTile - 1) / kKeyTile);
  }

  int rows() const { return load_.sequences * load_.rows; }
  // Of keys and values that are read.
  double cacheBytes() const { return cacheBytes_; }
  // Of the two products with the keys and values that rows see.
  double operations() const {
    const double seen = load_.sequences * (load_.rows * (load_.before + (load_.rows + 1) / 2.0));
    return 4.0 * seen * heads_.headCount * heads_.headDim;
  }
  // Of one call, on average over many.
  double microsecondsOfCall() {
    constexpr int kCalls = 40;
    for (int i = 0; i < 3; i++) backend_.attention(*out_, *queries_, 0, 0, rows());
    idle();
    double best = 1e30;
    for (int batch = 0; batch < 3; batch++) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < kCalls; i++) backend_.attention(*out_, *queries_, 0, 0, rows());
      idle();
      const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - begin;
      best = std::min(best, elapsed.count() / kCalls);
    }
    return best;
  }

 private:
  void idle() {
    backend_.whenIdle([] {});
  }
  void fill(DeviceBuffer& buffer) {
    std::vector<float> values(buffer.bytes / sizeof(float));
    uint32_t state = 7;
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
    backend_.copyIn(buffer, values.data(), buffer.bytes);
    idle();
  }
  void begin(const std::vector<SequenceRows>& sequences) {
    sequences_ = sequences;
    sequenceOfRow_.clear();
    slotOfRow_.clear();
    for (size_t i = 0; i < sequences_.size(); i++) {
      for (int row = 0; row < sequences_[i].rowCount; row++) {
        sequenceOfRow_.push_back(static_cast<int32_t>(i));
        slotOfRow_.push_back(sequences_[i].startPosition + row);
      }
    }
    rotations_.assign(slotOfRow_.size() * (heads_.headDim / 2), 0.5f);
    StepRows step = {};
    step.sequences = sequences_.data();
    step.sequenceCount = static_cast<int>(sequences_.size());
    step.rowCount = static_cast<int>(slotOfRow_.size());
    step.sequenceOfRow = sequenceOfRow_.data();
    step.slotOfRow = slotOfRow_.data();
    step.lastVisibleOfRow = slotOfRow_.data();
    step.rotations = rotations_.data();
    backend_.beginStep(step);
  }

  const Heads heads_;
  const Load load_;
  std::atomic<uint64_t> progress_{0};
  ThreadPool pool_;
  CudaBackend backend_;
  std::unique_ptr<DeviceBuffer> queries_;
  std::unique_ptr<DeviceBuffer> out_;
  std::unique_ptr<DeviceBuffer> qkv_;
  std::vector<SequenceRows> sequences_;
  std::vector<int32_t> sequenceOfRow_;
  std::vector<int32_t> slotOfRow_;
  std::vector<float> rotations_;
  double cacheBytes_ = 0.0;
};

}  // namespace

void benchAttention(const Limits& limits, Path path) {
  std::printf(
      "\nattention of one layer; decode: share of the copy bandwidth; prompts: share of the matrix peak\n");
  std::printf("%-10s %-8s %-22s %10s %8s\n", "heads", "cache", "rows", "us", "share");
  for (const Heads& heads : kHeads) {
    for (const Cache& cache : kCaches) {
      for (const Load& load : kLoads) {
        AttentionLoad attention(path, heads, cache, load);
        const double us = attention.microsecondsOfCall();
        const double share = load.rows == 1 ? attention.cacheBytes() / (us * 1e-6) / limits.copyBytes
                                            : attention.operations() / (us * 1e-6) /
                                                  limits.matrixOperations[static_cast<int>(path)];
        std::printf("%-10s %-8s %-22s %10.1f %7.1f%%\n", heads.name, cache.name, load.name, us,
                    100.0 * share);
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace glm_relay::cuda
