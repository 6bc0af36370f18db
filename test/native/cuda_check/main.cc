// cuda_check GROUP: holds the CUDA kernels against references in float64, and against themselves with other
// tiles, rows and neighbours. Prints "GROUP: N checks, 0 failed" and exits 0, or the failures and exits 1.
#include <cmath>
#include <cstdio>
#include <exception>

#include "check.h"

namespace glm_relay::cuda {

void Check::report(const std::string& what) { std::printf("FAILED %s\n", what.c_str()); }

void Check::near(const std::vector<float>& got, const std::vector<double>& expected, double bound,
                 const std::string& what) {
  double error = 0.0;
  double square = 0.0;
  for (size_t i = 0; i < expected.size(); i++) {
    error += (got[i] - expected[i]) * (got[i] - expected[i]);
    square += expected[i] * expected[i];
  }
  const double relative = std::sqrt(error / square);
  that(relative <= bound, [&] { return what + ": relative error " + std::to_string(relative); });
}

bool sameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); i++) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return false;
  }
  return true;
}

void Check::equal(const std::vector<float>& got, const std::vector<float>& expected,
                  const std::string& what) {
  that(sameBits(got, expected), [&] { return what + ": not the same bits"; });
}

uint64_t Random::next() {
  state_ += 0x9e3779b97f4a7c15ull;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

std::vector<float> Random::values(size_t count, float scale) {
  std::vector<float> list(count);
  for (float& x : list) x = unit() * scale;
  return list;
}

cudaStream_t stream() {
  static const cudaStream_t instance = [] {
    cudaStream_t made = nullptr;
    cuda::check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "making a stream");
    return made;
  }();
  return instance;
}

namespace {

struct Group {
  const char* name;
  void (*run)(Check& check);
};

constexpr Group kGroups[] = {
    {"elementwise", checkElementwise}, {"products", checkProducts},
    {"attention", checkAttention},     {"experts", checkExperts},
#ifndef GLM_RELAY_CUDA
    {"barriers", checkBarriers},
#endif
};

int run(const char* name) {
  prepareLaunches();
  for (const Group& group : kGroups) {
    if (std::strcmp(group.name, name) != 0) continue;
    Check check;
    try {
      group.run(check);
    } catch (const std::exception& error) {
      std::printf("FAILED %s\n", error.what());
      return 1;
    }
    std::printf("%s: %lld checks, %lld failed\n", name, static_cast<long long>(check.checks()),
                static_cast<long long>(check.failures()));
    return check.failures() == 0 ? 0 : 1;
  }
  std::printf("no group named %s\n", name);
  return 2;
}

}  // namespace

}  // namespace glm_relay::cuda

int main(int argc, char** argv) {
  if (argc != 2) {
    std::printf("usage: cuda_check GROUP\n");
    return 2;
  }
  return glm_relay::cuda::run(argv[1]);
}
