// Checks of the CUDA kernels: a group counts its checks and reports the first few that fail. They use CUDA's
// runtime alone, so the same checks run by emulation and on a GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device_memory.h"
#include "cuda/kernels/kernels.h"
#include "kernels/kernels.h"

namespace glm_relay::cuda {

class Check {
 public:
  // `what` is only called for a failure.
  template <class What>
  void that(bool holds, What what) {
    checks_++;
    if (holds) return;
    failures_++;
    if (failures_ <= 10) report(what());
  }
  // Root mean square of the differences, over that of what is expected.
  void near(const std::vector<float>& got, const std::vector<double>& expected, double bound,
            const std::string& what);
  // Equal to the bit; all NaNs count as one.
  void equal(const std::vector<float>& got, const std::vector<float>& expected, const std::string& what);

  int64_t checks() const { return checks_; }
  int64_t failures() const { return failures_; }

 private:
  static void report(const std::string& what);
  int64_t checks_ = 0;
  int64_t failures_ = 0;
};

bool sameBits(const std::vector<float>& a, const std::vector<float>& b);

// A seeded generator (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int below(int limit) { return static_cast<int>(next() % static_cast<uint64_t>(limit)); }
  // In [-1, 1].
  float unit() { return static_cast<float>(static_cast<int32_t>(next() >> 32)) * 0x1p-31f; }
  std::vector<float> values(size_t count, float scale = 1.0f);

 private:
  uint64_t state_;
};

// The stream of all checks.
cudaStream_t stream();

// An array in the GPU's memory.
template <class Value>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<Value>& values) : OnDevice(values.size()) {
    if (size_ > 0) {
      check(cudaMemcpyAsync(memory_.as<void>(), values.data(), size_ * sizeof(Value), cudaMemcpyHostToDevice,
                            stream()),
            "taking a check's values");
    }
  }
  explicit OnDevice(size_t size) : size_(size), memory_(size * sizeof(Value) + 1, stream()) {}

  Value* get() const { return memory_.as<Value>(); }
  std::vector<Value> read() const {
    std::vector<Value> values(size_);
    check(cudaMemcpyAsync(values.data(), memory_.as<void>(), size_ * sizeof(Value), cudaMemcpyDeviceToHost,
                          stream()),
          "giving a check's values");
    check(cudaStreamSynchronize(stream()), "running a check");
    return values;
  }

 private:
  size_t size_;
  DeviceMemory memory_;
};

constexpr Path kPaths[] = {Path::kTuring, Path::kAmpere};
inline const char* nameOf(Path path) { return path == Path::kTuring ? "turing" : "ampere"; }

// The groups; each fills one Check.
void checkElementwise(Check& check);
void checkProducts(Check& check);
void checkAttention(Check& check);
void checkExperts(Check& check);
// By emulation only: what happens without each of the barriers.
void checkBarriers(Check& check);

}  // namespace glm_relay::cuda
