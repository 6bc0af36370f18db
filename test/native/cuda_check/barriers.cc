// Takes away one barrier after the other, and one kind of wait for copies, and looks whether somebody
// notices: the emulation is only worth something if a kernel that lacks a barrier fails by it.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "attention_case.h"
#include "block.h"
#include "cuda/kernels/experts.h"
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

// In a process of its own: a kernel that takes garbage for an index may touch what is not there.
bool isNoticedApart(const Kernel& kernel, const std::vector<float>& right) {
  const pid_t child = fork();
  if (child == 0) _exit(isNoticed(kernel, right) ? 1 : 0);
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) throw std::runtime_error("a check cannot fork");
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
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
    check.that(isNoticedApart(kernel, right), [&] {
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
                 rmsNormRows(stream(), to, y.get(), x.get(), nullptr, weight.get(), kRows, kSize, 1e-5f);
                 return withScales();
               }},
              2, false);
  checkKernel(check,
              {"LayerNorm",
               [&] {
                 layerNormRows(stream(), to, y.get(), x.get(), nullptr, weight.get(), bias.get(), kRows,
                               kSize, 1e-5f);
                 return withScales();
               }},
              2, false);
  constexpr int kWide = 5001;
  const int widePadded = 5120;
  const OnDevice<float> wideX(random.values(kWide)), wideY(size_t{kWide}), wideScale(size_t{1});
  const OnDevice<uint16_t> wideHalves(static_cast<size_t>(halvesOf(1, widePadded)));
  const OnDevice<uint32_t> maxima(size_t{kRowShares});
  const HalfRows wideTo = {wideHalves.get(), wideScale.get(), widePadded, nullptr, maxima.get()};
  checkKernel(check,
              {"shared activation",
               [&] {
                 activateRows(stream(), wideTo, wideY.get(), Activation::kGelu, wideX.get(), 1, kWide);
                 return wideScale.read();
               }},
              1, false);
  checkKernel(check,
              {"FP16 rows",
               [&] {
                 halveRows(stream(), to, x.get(), kRows, kSize);
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
  // Of whole tiles, whose sums wait for the next part as vectors.
  const ProductCase wide(128, 128, 1500, {WeightType::kInt4, 32, ScaleChoice::kAbsMax}, DType::kFloat32,
                         false, 4);
  checkKernel(check,
              {"wider product", [&] { return wide.run(Path::kAmpere, ProductKernel::kWider, 0, wide.rows); }},
              3, true);
  checkKernel(check, {"turing product", productBy(Path::kTuring, ProductKernel::kWide)}, 3, false);

  // Many rows have the same experts, so that a place in a wrong order shows; and experts are in groups.
  const ProductCase router(40, 48, 300, {}, DType::kFloat16, false, 6);
  // Scores of experts that are often chosen lie where a warp that is done begins to group.
  std::vector<float> choiceBias(48, 0.0f);
  std::fill(choiceBias.begin() + 32, choiceBias.end(), 0.5f);
  const OnDevice<float> routed(router.x), routerBias(choiceBias);
  const OnDevice<float> logits(size_t{40} * 48);
  const OnDevice<ChosenExpert> chosen(size_t{40} * 3);
  const OnDevice<ExpertPart> parts(size_t{40} * 3);
  RouterArgs routing = {};
  routing.logits = logits.get();
  routing.chosen = chosen.get();
  routing.x = routed.get();
  routing.weights = router.args().weights;
  routing.rowScales = router.args().rowScales;
  routing.bias = routerBias.get();
  routing.shape.count = 48;
  routing.shape.perToken = 3;
  routing.shape.groups = 6;
  routing.shape.groupsPerToken = 2;
  routing.k = router.k;
  routing.columnBlocks = router.args().columnBlocks;
  routing.rows = 40;
  const int tileCount = expertTiles(40, routing.shape, kTileRows);
  const int slots = expertSlots(40, routing.shape);
  const OnDevice<ExpertTile> tiles(static_cast<size_t>(tileCount));
  const OnDevice<int32_t> rowOfSlot(static_cast<size_t>(slots));
  const GroupArgs groups = {parts.get(), rowOfSlot.get(), tiles.get(), slots, kTileRows, tileCount};
  checkKernel(check,
              {"router",
               [&] {
                 routerLogits(stream(), routing);
                 return logits.read();
               }},
              1, false);
  const auto grouping = [&](int rows, bool atOnce) {
    return [&, rows, atOnce] {
      // What is not written must not be what the run before has left.
      const auto clear = [](void* memory, size_t bytes) {
        cuda::check(cudaMemsetAsync(memory, 0xff, bytes, stream()), "clearing");
      };
      clear(chosen.get(), 40 * 3 * sizeof(ChosenExpert));
      clear(parts.get(), 40 * 3 * sizeof(ExpertPart));
      clear(rowOfSlot.get(), slots * sizeof(int32_t));
      clear(tiles.get(), groups.tileCount * sizeof(ExpertTile));
      RouterArgs args = routing;
      args.rows = rows;
      if (atOnce) {
        chooseAndGroup(stream(), args, groups);
      } else {
        chooseExperts(stream(), args);
        groupByExpert(stream(), args, groups);
      }
      std::vector<float> all;
      for (const ChosenExpert& choice : chosen.read()) {
        all.push_back(static_cast<float>(choice.expert));
        all.push_back(choice.weight);
      }
      for (const ExpertPart& part : parts.read()) all.push_back(static_cast<float>(part.slot));
      for (int32_t row : rowOfSlot.read()) all.push_back(static_cast<float>(row));
      for (const ExpertTile& tile : tiles.read()) {
        all.push_back(static_cast<float>(tile.expert * 10000 + tile.firstRow * 100 + tile.rows));
      }
      return all;
    };
  };
  checkKernel(check, {"experts of many rows", grouping(40, false)}, 6, false);
  checkKernel(check, {"experts of few rows", grouping(17, true)}, 7, false);

  // Keys in several tiles, read by several warps.
  for (KvType type : {KvType::kFloat32, KvType::kFloat16, KvType::kInt8}) {
    AttentionCase attention({type, 8, 2, 64, {{70, 48}, {0, 3}}, 0}, 4);
    attention.store();
    const int rows = attention.rows();
    for (Path path : kPaths) {
      const bool copies = path == Path::kAmpere && usesTensorCores(path, type, 64);
      const std::string name = std::string(nameOf(path)) + " attention, " + attention.name();
      checkKernel(check, {name.c_str(), [&] { return attention.attend(path, 0, rows, rows, false); }},
                  copies ? 1 : 2, copies);
    }
  }
}

}  // namespace glm_relay::cuda
