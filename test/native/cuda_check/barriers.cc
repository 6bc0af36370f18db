// Takes away one barrier after the other, and one kind of wait for copies, and looks whether somebody
// notices: the emulation is only worth something if a kernel that lacks a barrier fails by it.
#include <set>

#include "attention_case.h"
#include "block.h"
#include "cuda/kernels/rows.h"
#include "product_case.h"

namespace glm_relay::cuda {

namespace {

// Orders of threads that each kernel is tried in.
constexpr int kSeeds = 6;

struct Kernel {
  const char* name;
  std::function<std::vector<float>()> run;
};

// What a kernel gives, or nothing when the emulation refuses what it does.
std::vector<float> outcome(const Kernel& kernel) {
  try {
    return kernel.run();
  } catch (const CudaError&) {
    return {};
  }
}

bool isNoticed(const Kernel& kernel, const std::vector<float>& right) {
  for (int seed = 1; seed <= kSeeds; seed++) {
    emulation::settings().seed = static_cast<uint64_t>(seed);
    if (!sameBits(outcome(kernel), right)) return true;
  }
  return false;
}

void checkKernel(Check& check, const Kernel& kernel, int barriers, bool copies) {
  emulation::Settings& settings = emulation::settings();
  std::set<emulation::Site> sites;
  settings = {};
  settings.passed = &sites;
  const std::vector<float> right = outcome(kernel);
  settings.passed = nullptr;
  check.that(!right.empty(), [&] { return std::string(kernel.name) + " fails as it is"; });
  check.that(!isNoticed(kernel, right),
             [&] { return std::string(kernel.name) + " depends on the order of its threads"; });
  check.that(static_cast<int>(sites.size()) >= barriers, [&] {
    return std::string(kernel.name) + " has " + std::to_string(sites.size()) + " barriers, expected " +
           std::to_string(barriers) + " or more";
  });
  for (const emulation::Site& site : sites) {
    settings.skipped = site;
    check.that(isNoticed(kernel, right), [&] {
      return std::string(kernel.name) + " does not notice that the barrier in line " +
             std::to_string(site.second) + " of " + site.first + " is missing";
    });
  }
  settings.skipped = {};
  if (copies) {
    settings.skipWaits = true;
    check.that(isNoticed(kernel, right),
               [&] { return std::string(kernel.name) + " does not notice that copies are not waited for"; });
    settings.skipWaits = false;
  }
  settings = {};
}

}  // namespace

void checkBarriers(Check& check) {
  Random random(3);
  constexpr int kRows = 2;
  constexpr int kSize = 300;
  const OnDevice<float> x(random.values(kRows * kSize)), weight(random.values(kSize)),
      bias(random.values(kSize));
  const OnDevice<float> y(static_cast<size_t>(kRows) * kSize), scales(static_cast<size_t>(kRows));
  const OnDevice<uint16_t> halves(static_cast<size_t>(halvesOf(kRows, 384)));
  const HalfRows to = {halves.get(), scales.get(), 384};
  const auto withScales = [&] {
    std::vector<float> values = y.read();
    const std::vector<float> factors = scales.read();
    values.insert(values.end(), factors.begin(), factors.end());
    return values;
  };
  checkKernel(check,
              {"RMSNorm",
               [&] {
                 rmsNormRows(stream(), to, y.get(), x.get(), weight.get(), kRows, kSize, 1e-5f);
                 return withScales();
               }},
              2, false);
  checkKernel(check,
              {"LayerNorm",
               [&] {
                 layerNormRows(stream(), to, y.get(), x.get(), weight.get(), bias.get(), kRows, kSize, 1e-5f);
                 return withScales();
               }},
              2, false);
  checkKernel(check,
              {"FP16 rows",
               [&] {
                 toHalves(stream(), halves.get(), nullptr, scales.get(), x.get(), kRows, kSize, 384);
                 return scales.read();
               }},
              1, false);

  const ProductCase product(20, 40, 1000, {WeightType::kInt4, 32, ScaleChoice::kAbsMax}, DType::kFloat32,
                            false, 2);
  const auto productBy = [&](Path path, ProductKernel kernel) {
    return [&product, path, kernel] { return product.run(path, kernel, 0, 20); };
  };
  checkKernel(check, {"narrow product", productBy(Path::kAmpere, ProductKernel::kNarrow8)}, 2, false);
  checkKernel(check, {"ampere product", productBy(Path::kAmpere, ProductKernel::kWide)}, 2, true);
  checkKernel(check, {"turing product", productBy(Path::kTuring, ProductKernel::kWide)}, 3, false);

  AttentionCase attention({KvType::kFloat16, 8, 2, 24, {{60, 9}, {0, 3}}, 0}, 4);
  attention.store();
  checkKernel(check, {"attention", [&] { return attention.attend(0, attention.rows(), 0, false); }}, 3,
              false);
}

}  // namespace glm_relay::cuda
