#include "measure.h"

#include <algorithm>

namespace glm_relay::cuda {

namespace {

constexpr int kWarmUps = 2;
constexpr int kBatches = 5;
constexpr double kBatchMicroseconds = 8000.0;
constexpr int kMaxCalls = 2000;

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "making an event"); }
  ~Event() { cudaEventDestroy(event_); }
  void record() { check(cudaEventRecord(event_, stream()), "recording an event"); }
  double microsecondsTo(const Event& end) const {
    float milliseconds = 0.0f;
    check(cudaEventSynchronize(end.event_), "running kernels");
    check(cudaEventElapsedTime(&milliseconds, event_, end.event_), "reading an event");
    return milliseconds * 1000.0;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

cudaStream_t stream() {
  static const cudaStream_t instance = [] {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a stream");
    return made;
  }();
  return instance;
}

double microseconds(const std::function<void(int call)>& run) {
  Event begin;
  Event end;
  int call = 0;
  const auto batch = [&](int calls) {
    begin.record();
    for (int i = 0; i < calls; i++) run(call++);
    end.record();
    return begin.microsecondsTo(end) / calls;
  };
  const double first = batch(kWarmUps);
  const int calls = std::clamp(static_cast<int>(kBatchMicroseconds / std::max(first, 1.0)), 3, kMaxCalls);
  std::vector<double> times;
  for (int i = 0; i < kBatches; i++) times.push_back(batch(calls));
  check(cudaGetLastError(), "starting a kernel");
  std::sort(times.begin(), times.end());
  return times[kBatches / 2];
}

RandomMemory::RandomMemory(uint64_t bytes) : memory_(bytes, stream()) {
  std::vector<uint64_t> piece(1 << 20);
  uint64_t state = 1;
  for (uint64_t& word : piece) {
    state += 0x9e3779b97f4a7c15ull;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    word = (z ^ (z >> 31)) & 0xbfffbfffbfffbfffull;
  }
  const uint64_t pieceBytes = piece.size() * sizeof(uint64_t);
  for (uint64_t offset = 0; offset < bytes; offset += pieceBytes) {
    check(cudaMemcpyAsync(get() + offset, piece.data(), std::min(pieceBytes, bytes - offset),
                          cudaMemcpyHostToDevice, stream()),
          "filling memory");
  }
  check(cudaStreamSynchronize(stream()), "filling memory");
}

ZeroMemory::ZeroMemory(uint64_t bytes) : memory_(bytes, stream()) {
  check(cudaMemsetAsync(memory_.as<void>(), 0, bytes, stream()), "clearing memory");
}

Limits measureLimits() {
  constexpr uint64_t kCopied = 1ull << 30;
  Limits limits = {};
  {
    const RandomMemory from(kCopied);
    const ZeroMemory to(kCopied);
    const double us = microseconds([&](int) {
      check(cudaMemcpyAsync(to.as<void>(), from.get(), kCopied, cudaMemcpyDeviceToDevice, stream()),
            "copying");
    });
    limits.copyBytes = 2.0 * kCopied / us * 1e6;
  }
  for (Path path : {Path::kTuring, Path::kAmpere}) {
    double operations = 0.0;
    const double us = microseconds([&](int) { operations = startMatrixLoop(path); });
    limits.matrixOperations[static_cast<int>(path)] = operations / us * 1e6;
  }
  return limits;
}

}  // namespace glm_relay::cuda
