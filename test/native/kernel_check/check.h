// Checks of single kernels: a group counts its checks and reports the first few that fail.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace glm_relay {

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
  // Equal to the bit, -0 and NaN included. What was got goes into the digest.
  void equal(const std::vector<float>& got, const std::vector<float>& expected, const std::string& what);

  int64_t checks() const { return checks_; }
  int64_t failures() const { return failures_; }
  // Of all bits that were got: the same on every CPU. All NaNs count as one; their bits are no part of the
  // canon.
  uint64_t digest() const { return digest_; }

 private:
  static void report(const std::string& what);
  int64_t checks_ = 0;
  int64_t failures_ = 0;
  uint64_t digest_ = 0xcbf29ce484222325ull;  // FNV-1a over words
};

// A seeded generator (splitmix64); a failure can be repeated because every run makes the same values.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int below(int limit) { return static_cast<int>(next() % static_cast<uint64_t>(limit)); }
  // Mostly in [-1, 1], at times tiny, huge or zero, so that the order of additions shows.
  float value();
  std::vector<float> values(size_t count);

 private:
  uint64_t state_;
};

constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBfloat16};

// The groups; each fills one Check. `variant` is compared with scalar.
void checkMatmul(const KernelTable& variant, Check& check);
void checkQuant(const KernelTable& variant, Check& check);
void checkAttention(const KernelTable& variant, Check& check);
void checkElementwise(const KernelTable& variant, Check& check);
void checkConversions(const KernelTable& variant, Check& check);
void checkMath(const KernelTable& variant, Check& check);
void checkPhilox(const KernelTable& variant, Check& check);

}  // namespace glm_relay
