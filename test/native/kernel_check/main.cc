// kernel_check VARIANT GROUP: compares one kernel variant with scalar/, or functions of the canon with
// references. Prints "VARIANT GROUP: N checks, 0 failed, digest D" and exits 0, or the failures and exits 1.
#include <cstdio>
#include <cstring>

#include "check.h"

namespace glm_relay {

void Check::report(const std::string& what) { std::printf("FAILED %s\n", what.c_str()); }

void Check::equal(const std::vector<float>& got, const std::vector<float>& expected,
                  const std::string& what) {
  for (size_t i = 0; i < expected.size(); i++) {
    that(std::memcmp(&got[i], &expected[i], sizeof(float)) == 0, [&] {
      return what + " element " + std::to_string(i) + ": " + std::to_string(got[i]) + ", expected " +
             std::to_string(expected[i]);
    });
    uint32_t bits = 0x7fc00000u;
    if (got[i] == got[i]) std::memcpy(&bits, &got[i], sizeof(bits));
    digest_ = (digest_ ^ bits) * 0x100000001b3ull;
  }
}

uint64_t Random::next() {
  state_ += 0x9e3779b97f4a7c15ull;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

float Random::value() {
  const float unit = static_cast<float>(static_cast<int32_t>(next() >> 32)) * 0x1p-31f;
  switch (below(24)) {
    case 0:
      return unit * 1000.0f;
    case 1:
      return unit * 1e-6f;
    case 2:
      return 0.0f;
    default:
      return unit;
  }
}

std::vector<float> Random::values(size_t count) {
  std::vector<float> list(count);
  for (float& x : list) x = value();
  return list;
}

namespace {

// Mistakes on purpose: a build with sanitizers that lets them pass would let others pass too.
#ifdef __SANITIZE_ADDRESS__
void plantRead(const KernelTable&, Check& check) {
  const std::vector<float> values(4, 1.0f);
  const volatile size_t behind = values.size();
  check.that(values.data()[behind] != 0.0f, [] { return std::string("read"); });
}

void plantShift(const KernelTable&, Check& check) {
  const volatile int width = 32;
  check.that((1u << width) != 7u, [] { return std::string("shift"); });
}
#endif

struct Group {
  const char* name;
  void (*run)(const KernelTable& variant, Check& check);
};

constexpr Group kGroups[] = {
    {"matmul", checkMatmul},           {"quant", checkQuant},
    {"attention", checkAttention},     {"elementwise", checkElementwise},
    {"conversions", checkConversions}, {"math", checkMath},
    {"philox", checkPhilox},
#ifdef __SANITIZE_ADDRESS__
    {"planted-read", plantRead},       {"planted-shift", plantShift},
#endif
};

int run(const char* variantName, const char* groupName) {
  const KernelTable* variant = findKernels(variantName);
  if (variant == nullptr || std::strcmp(variant->name, variantName) != 0) {
    std::printf("no kernels named %s on this CPU\n", variantName);
    return 2;
  }
  for (const Group& group : kGroups) {
    if (std::strcmp(group.name, groupName) != 0) continue;
    Check check;
    group.run(*variant, check);
    std::printf("%s %s: %lld checks, %lld failed, digest %016llx\n", variant->name, group.name,
                static_cast<long long>(check.checks()), static_cast<long long>(check.failures()),
                static_cast<unsigned long long>(check.digest()));
    return check.failures() == 0 ? 0 : 1;
  }
  std::printf("no group named %s\n", groupName);
  return 2;
}

}  // namespace
}  // namespace glm_relay

int main(int argc, char** argv) {
  if (argc != 3) {
    std::printf("usage: kernel_check VARIANT GROUP\n");
    return 2;
  }
  return glm_relay::run(argv[1], argv[2]);
}
