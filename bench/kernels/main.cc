// kernel_bench THREADS [limits]: how fast each kernel of each variant that this CPU has is, beside the
// machine's limits, which are measured in turn with it; or the limits alone. Prints one JSON object per line
// (bench/kernels.ts reads it).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "peaks.h"

namespace glm_relay {

volatile int64_t sink = 0;

namespace {

// The widest matrix of a 6B model: gate and up together.
constexpr int kN = 27'392;
constexpr int kK = 4'096;
constexpr int kRowCounts[] = {1, 2, 4, 8, 16, 32, 64, 512};
constexpr int kMaxRows = 512;
// Many rows take long: so many strips are enough.
constexpr int kManyRows = 64;
constexpr int kStripsOfMany = 96;
constexpr int kHeadDim = 128;
constexpr int kContext = 8'192;
constexpr int kQueryCounts[] = {16, 32};
// Calls that are timed together: one is over in a millisecond.
constexpr int kAttentionCalls = 16;
constexpr int kRepeats = 7;
constexpr int64_t kPeakRounds = 30'000'000;
// Larger than any cache.
constexpr size_t kReadBytes = size_t{256} << 20;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds that `work(thread)` takes on all threads at once; the median of some times.
double timed(int threads, const std::function<void(int)>& work) {
  std::vector<double> times;
  for (int repeat = 0; repeat < kRepeats; repeat++) {
    const double begin = seconds();
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; thread++) others.emplace_back(work, thread);
    work(0);
    for (std::thread& other : others) other.join();
    times.push_back(seconds() - begin);
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

class Bytes {
 public:
  explicit Bytes(size_t size)
      : data_(static_cast<uint8_t*>(std::aligned_alloc(4096, (size + 8191) / 4096 * 4096))) {
    uint32_t state = 1;
    for (size_t i = 0; i < size; i++) {
      state = state * 1664525u + 1013904223u;
      const uint8_t byte = static_cast<uint8_t>(state >> 24);
      data_[i] = byte == 128 ? 0 : byte;  // no weight of 8 bits is -128
    }
  }
  ~Bytes() { std::free(data_); }
  Bytes(const Bytes&) = delete;
  uint8_t* get() const { return data_; }

 private:
  uint8_t* data_;
};

Peaks peaksOf([[maybe_unused]] const std::string& variant) {
#ifdef GLM_RELAY_HAVE_AVX512_VNNI
  if (variant == "avx512-vnni") return {avx512VnniBytes, avx512Floats};
#endif
#ifdef GLM_RELAY_HAVE_AVX_VNNI
  if (variant == "avx-vnni") return {avxVnniBytes, avx2Floats};
#endif
#ifdef GLM_RELAY_HAVE_AVX2
  if (variant == "avx2") return {avx2Bytes, avx2Floats};
#endif
  return {nullptr, nullptr};
}

double peakOf(int threads, PeakLoop loop) {
  if (loop == nullptr) return 0;
  int64_t operations = 0;
  const double time = timed(threads, [&](int thread) {
    const int64_t done = loop(kPeakRounds);
    if (thread == 0) operations = done;
  });
  return static_cast<double>(operations) * threads / time;
}

double readBandwidth(int threads) {
#ifdef GLM_RELAY_HAVE_AVX2
  const Bytes memory(kReadBytes);
  const size_t part = kReadBytes / threads;
  const double time = timed(threads, [&](int thread) { avx2Read(memory.get() + thread * part, part); });
  return static_cast<double>(part) * threads / time;
#else
  return 0 * threads;
#endif
}

void print(const char* variant, int threads, const char* kernel, int rows, double bytes, double operations,
           double time) {
  std::printf(
      "{\"variant\":\"%s\",\"threads\":%d,\"kernel\":\"%s\",\"rows\":%d,\"bytesPerSecond\":%.4g,"
      "\"operationsPerSecond\":%.4g}\n",
      variant, threads, kernel, rows, bytes / time, operations / time);
  std::fflush(stdout);
}

// Strips [0, count) shared out among the threads.
template <class Args, class Kernel>
double matmulTime(const Args& args, int strips, int threads, Kernel kernel) {
  return timed(threads, [&](int thread) {
    Args part = args;
    part.stripBegin = strips * thread / threads;
    part.stripEnd = strips * (thread + 1) / threads;
    kernel(part);
  });
}

void rounded(const KernelTable& table, int threads, WeightType type, const char* name) {
  const QuantLayout layout(kN, kK, {type, 32, ScaleChoice::kAbsMax});
  const Bytes weights(layout.bytes());
  for (int strip = 0; strip < layout.strips; strip++) {
    for (int group = 0; group < layout.groups(); group++) {
      uint8_t* scales = weights.get() + strip * layout.stripBytes() + layout.scalesOffset(group);
      for (int row = 0; row < kStripRows; row++) reinterpret_cast<StripScales*>(scales)->half[row] = 0x2000;
    }
  }
  std::vector<float> x(static_cast<size_t>(kMaxRows) * kK);
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i * 7919 % 2'001) * 1e-3f - 1.0f;
  const size_t tileBytes = activationTiles(kMaxRows, kK) * sizeof(ActivationTile);
  auto* tiles = static_cast<ActivationTile*>(std::aligned_alloc(64, tileBytes));
  for (int row = 0; row < kMaxRows; row += kTileRows) {
    table.quantizeRows(tiles + activationTiles(row, kK), x.data() + static_cast<size_t>(row) * kK, kTileRows,
                       kK);
  }
  std::vector<float> y(static_cast<size_t>(kMaxRows) * kN);
  for (const int rows : kRowCounts) {
    const int strips = rows >= kManyRows ? kStripsOfMany : layout.strips;
    QuantMatmulArgs args = {};
    args.y = y.data();
    args.x = tiles;
    args.strips = weights.get();
    args.rows = rows;
    args.n = kN;
    args.k = kK;
    args.tilesPerGroup = layout.tilesPerGroup;
    const double time =
        matmulTime(args, strips, threads, type == WeightType::kInt4 ? table.matmulInt4 : table.matmulInt8);
    const double operations = 2.0 * strips * kStripRows * kK * rows;
    print(table.name, threads, name, rows, static_cast<double>(strips) * layout.stripBytes(), operations,
          time);
  }
  std::free(tiles);
}

void floats(const KernelTable& table, int threads) {
  const int strips = kN / kStripRows;
  const Bytes weights(static_cast<size_t>(kN) * kK * 2);
  auto* halves = reinterpret_cast<uint16_t*>(weights.get());
  for (size_t i = 0; i < static_cast<size_t>(kN) * kK; i++) halves[i] = 0x2c00 + i % 64;
  const std::vector<float> x(static_cast<size_t>(kMaxRows) * kK, 0.5f);
  std::vector<float> y(static_cast<size_t>(kMaxRows) * kN);
  for (const int rows : kRowCounts) {
    const int count = rows >= kManyRows ? kStripsOfMany : strips;
    MatmulArgs args = {};
    args.y = y.data();
    args.x = x.data();
    args.packed = weights.get();
    args.rows = rows;
    args.n = kN;
    args.k = kK;
    const auto kernel = table.matmul[static_cast<int>(DType::kFloat16)];
    const double time = matmulTime(args, count, threads, kernel);
    const double values = static_cast<double>(count) * kStripRows * kK;
    print(table.name, threads, "float16", rows, 2 * values, 2 * values * rows, time);
  }
}

void attention(const KernelTable& table, int threads, KvType type, const char* name) {
  const int tiles = kContext / kKeyTile;
  const size_t tileBytes = kvTileBytes(type, kHeadDim);
  for (const int count : kQueryCounts) {
    const Bytes keys(tileBytes * tiles * threads);
    const Bytes values(tileBytes * tiles * threads);
    // FP16 numbers of about a tenth, and scales of that size.
    for (const Bytes* memory : {&keys, &values}) {
      auto* halves = reinterpret_cast<uint16_t*>(memory->get());
      for (size_t i = 0; i < tileBytes * tiles * threads / 2; i++) {
        const bool isScale = type == KvType::kInt8 && i * 2 % tileBytes >= tileBytes - 2 * kKeyTile;
        if (type == KvType::kFloat16 || isScale) halves[i] = 0x2c00 + i % 512;
      }
    }
    std::vector<int32_t> blocks(tiles);
    for (int tile = 0; tile < tiles; tile++) blocks[tile] = tile;
    const size_t rowFloats = static_cast<size_t>(count) * kHeadDim;
    std::vector<float> q(rowFloats * threads, 0.01f);
    std::vector<float> out(rowFloats * threads);
    std::vector<float> scratch(attentionScratchFloats(kHeadDim) * threads);
    const double time = timed(threads, [&](int thread) {
      std::vector<AttentionQuery> queries(count);
      for (int i = 0; i < count; i++) {
        const size_t at = thread * rowFloats + static_cast<size_t>(i) * kHeadDim;
        queries[i] = {q.data() + at, out.data() + at, kContext - 1};
      }
      AttentionArgs args = {};
      args.queries = queries.data();
      args.queryCount = count;
      args.kv = {keys.get() + thread * tileBytes * tiles, values.get() + thread * tileBytes * tiles,
                 blocks.data(), 1, tileBytes};
      args.headDim = kHeadDim;
      args.scale = 0.088f;
      args.scratch = scratch.data() + thread * attentionScratchFloats(kHeadDim);
      for (int call = 0; call < kAttentionCalls; call++) table.attention[static_cast<int>(type)](args);
    });
    const double calls = static_cast<double>(threads) * kAttentionCalls;
    print(table.name, threads, name, count, 2.0 * tileBytes * tiles * calls,
          4.0 * count * kHeadDim * kContext * calls, time);
  }
}

void run(int threads, bool limitsAlone) {
  const KernelNames available = availableKernels();
  for (int i = 0; i < available.count; i++) {
    const KernelTable& table = *findKernels(available.names[i]);
    // The specification, which nobody is meant to wait for.
    if (std::strcmp(table.name, "scalar") == 0) continue;
    const Peaks peaks = peaksOf(table.name);
    std::printf(
        "{\"variant\":\"%s\",\"threads\":%d,\"readBandwidth\":%.4g,\"bytePeak\":%.4g,\"floatPeak\":%.4g}\n",
        table.name, threads, readBandwidth(threads), peakOf(threads, peaks.bytes),
        peakOf(threads, peaks.floats));
    if (limitsAlone) continue;
    rounded(table, threads, WeightType::kInt4, "int4");
    rounded(table, threads, WeightType::kInt8, "int8");
    floats(table, threads);
    attention(table, threads, KvType::kFloat16, "attention float16");
    attention(table, threads, KvType::kInt8, "attention int8");
  }
}

}  // namespace
}  // namespace glm_relay

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : 1;
  if (threads < 1 || threads > 256) {
    std::fprintf(stderr, "kernel_bench THREADS: %s, expected 1 to 256\n", arguments[1]);
    return 2;
  }
  glm_relay::run(threads, count > 2 && std::strcmp(arguments[2], "limits") == 0);
  return 0;
}
