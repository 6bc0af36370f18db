// Mixtures of experts: what each part of a layer takes, with each of the kernels that products have.
#include "cuda/kernels/experts.h"

#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "measure.h"

namespace glm_relay::cuda {

namespace {

struct Model {
  const char* name;
  int hiddenSize;
  ExpertShape shape;
};

ExpertShape shapeOf(int count, int ffnSize) {
  ExpertShape shape;
  shape.count = count;
  shape.perToken = 8;
  shape.ffnSize = ffnSize;
  shape.normalizeWeights = true;
  return shape;
}

constexpr WeightFormat kFormat = {WeightType::kInt4, 128, ScaleChoice::kAbsMax};
// Choices in turn, so that no cache holds the experts of the next.
constexpr int kSets = 16;

// The weights of a layer: one arena, in which the matrices follow each other.
class Matrices {
 public:
  Matrices(int n, int k, int count)
      : layout(n, k, kFormat),
        stride_((layout.bytes() + 255) / 256 * 256),
        arena_(stride_ * count),
        scales_(n * 4) {
    std::vector<ExpertMatrix> all;
    for (int i = 0; i < count; i++) {
      all.push_back({arena_.at(i * stride_), reinterpret_cast<const float*>(scales_.get())});
    }
    list_ = std::make_unique<DeviceMemory>(count * sizeof(ExpertMatrix), stream());
    check(cudaMemcpyAsync(list_->as<void>(), all.data(), list_->bytes(), cudaMemcpyHostToDevice, stream()),
          "preparing a benchmark");
  }
  ProductArgs args(int n) const {
    ProductArgs args = {};
    args.n = n;
    args.rowBlocks = layout.rowBlocks;
    args.columnBlocks = layout.columnBlocks;
    args.groupsPerBlock = layout.groupsPerBlock;
    args.blockBytes = layout.blockBytes;
    return args;
  }
  const ExpertMatrix* list() const { return list_->as<ExpertMatrix>(); }

  const WeightLayout layout;

 private:
  const uint64_t stride_;
  const RandomMemory arena_;
  const RandomMemory scales_;
  std::unique_ptr<DeviceMemory> list_;
};

// What some rows chose.
struct Choice {
  Choice(const ExpertShape& shape, int rows, int tileRows, std::mt19937& random)
      : logits(static_cast<uint64_t>(rows) * shape.count * sizeof(float)),
        chosen(static_cast<uint64_t>(rows) * shape.perToken * sizeof(ChosenExpert)),
        parts(static_cast<uint64_t>(rows) * shape.perToken * sizeof(ExpertPart)),
        rowOfSlot(expertSlots(rows, shape) * sizeof(int32_t)),
        tiles(expertTiles(rows, shape, tileRows) * sizeof(ExpertTile)),
        group{parts.as<ExpertPart>(),
              rowOfSlot.as<int32_t>(),
              tiles.as<ExpertTile>(),
              expertSlots(rows, shape),
              tileRows,
              expertTiles(rows, shape, tileRows)} {
    std::vector<float> values(static_cast<size_t>(rows) * shape.count);
    std::normal_distribution<float> normal;
    for (float& value : values) value = normal(random);
    check(cudaMemcpyAsync(logits.as<void>(), values.data(), values.size() * sizeof(float),
                          cudaMemcpyHostToDevice, stream()),
          "preparing a benchmark");
  }

  const ZeroMemory logits;
  const ZeroMemory chosen;
  const ZeroMemory parts;
  const ZeroMemory rowOfSlot;
  const ZeroMemory tiles;
  const GroupArgs group;
};

void benchModel(const Limits& limits, Path path, const Model& model) {
  constexpr int kMaxRows = 512;
  const ExpertShape& shape = model.shape;
  const int hidden = model.hiddenSize;
  const Matrices up(2 * shape.ffnSize, hidden, shape.count);
  const Matrices down(hidden, shape.ffnSize, shape.count);
  const WeightLayout router(shape.count, hidden, {});
  const RandomMemory routerBlocks(router.bytes());
  const RandomMemory floats(static_cast<uint64_t>(kMaxRows) * hidden * sizeof(float));
  const ZeroMemory bias(shape.count * sizeof(float));
  const int mostSlots = expertSlots(kMaxRows, shape);
  const int padded = up.layout.paddedColumns();
  const RandomMemory rowHalves(halvesOf(kMaxRows, padded) * sizeof(uint16_t));
  const ZeroMemory slotHalves(halvesOf(mostSlots, padded) * sizeof(uint16_t));
  const ZeroMemory scales(mostSlots * sizeof(float));
  const ZeroMemory inner(2ull * mostSlots * shape.ffnSize * sizeof(float));
  const ZeroMemory parts(static_cast<uint64_t>(mostSlots) * hidden * sizeof(float));
  const ZeroMemory mixed(static_cast<uint64_t>(kMaxRows) * hidden * sizeof(float));
  std::printf("\n%s, int4/128: us; share of the copy bandwidth by the weights of the experts chosen\n",
              model.name);
  std::printf("%5s %7s %7s %7s %7s %7s", "rows", "router", "choice", "gather", "silu", "mix");
  for (ProductKernel kernel : kProductKernels) std::printf("  up, down by tiles of %-2d   ", rowsOf(kernel));
  std::printf("\n");
  for (int rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, kMaxRows}) {
    const HalfRows from = {reinterpret_cast<uint16_t*>(rowHalves.get()), scales.as<float>(), padded};
    const auto slotsOf = [&](const Choice& choice, int columns) {
      return HalfRows{slotHalves.as<uint16_t>(), scales.as<float>(), columns, choice.group.rowOfSlot};
    };
    const auto routing = [&](const Choice& choice) {
      RouterArgs args = {};
      args.logits = choice.logits.as<float>();
      args.chosen = choice.chosen.as<ChosenExpert>();
      args.x = reinterpret_cast<const float*>(floats.get());
      args.weights = routerBlocks.get();
      args.rowScales = bias.as<float>();
      args.bias = bias.as<float>();
      args.shape = shape;
      args.rows = rows;
      args.k = hidden;
      args.columnBlocks = router.columnBlocks;
      return args;
    };
    std::mt19937 random(static_cast<unsigned int>(rows));
    bool first = true;
    for (ProductKernel kernel : kProductKernels) {
      std::vector<std::unique_ptr<Choice>> sets;
      double experts = 0.0;
      for (int i = 0; i < kSets; i++) {
        sets.push_back(std::make_unique<Choice>(shape, rows, rowsOf(kernel), random));
        const Choice& choice = *sets.back();
        chooseAndGroup(stream(), routing(choice), choice.group);
        std::vector<ExpertTile> tiles(choice.group.tileCount);
        check(cudaMemcpyAsync(tiles.data(), choice.tiles.as<void>(), tiles.size() * sizeof(ExpertTile),
                              cudaMemcpyDeviceToHost, stream()),
              "looking at choices");
        check(cudaStreamSynchronize(stream()), "looking at choices");
        std::vector<bool> used(shape.count);
        for (const ExpertTile& tile : tiles) {
          if (tile.rows > 0) used[tile.expert] = true;
        }
        for (const bool is : used) experts += is ? 1.0 / kSets : 0.0;
      }
      const auto of = [&](int call) -> const Choice& { return *sets[call % kSets]; };
      const int slots = sets.front()->group.slots;
      if (first) {
        first = false;
        // The router writes other logits than those that were chosen from.
        RouterArgs routed = routing(of(0));
        routed.logits = mixed.as<float>();
        std::printf("%5d %7.2f", rows, microseconds([&](int) { routerLogits(stream(), routed); }));
        std::printf(" %7.2f", microseconds([&](int call) {
                      chooseAndGroup(stream(), routing(of(call)), of(call).group);
                    }));
        std::printf(" %7.2f", microseconds([&](int call) {
                      gatherHalves(stream(), slotsOf(of(call), padded), from, slots);
                    }));
        std::printf(" %7.2f", microseconds([&](int call) {
                      activateRows(stream(), slotsOf(of(call), down.layout.paddedColumns()), nullptr,
                                   Activation::kGatedSilu, inner.as<float>(), slots, shape.ffnSize);
                    }));
        std::printf(" %7.2f", microseconds([&](int call) {
                      mixParts(stream(), mixed.as<float>(), parts.as<float>(), of(call).group.parts, rows,
                               shape.perToken, hidden);
                    }));
      }
      const auto multiply = [&](const Matrices& matrices, int n, float* y) {
        const double us = microseconds([&](int call) {
          ProductArgs args = matrices.args(n);
          args.y = y;
          args.x = slotHalves.as<uint16_t>();
          args.xScales = scales.as<float>();
          groupedProduct(stream(), path, kFormat.type, kernel, args,
                         {matrices.list(), of(call).group.tiles, of(call).group.tileCount});
        });
        std::printf("  %7.1f %4.0f%%", us,
                    100.0 * experts * matrices.layout.bytes() / (us * 1e-6) / limits.copyBytes);
      };
      multiply(up, 2 * shape.ffnSize, inner.as<float>());
      multiply(down, hidden, parts.as<float>());
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace

void benchExperts(const Limits& limits, Path path) {
  prepareProducts(path);
  benchModel(limits, path, {"GLM-4.5-Air", 4096, shapeOf(128, 1408)});
  benchModel(limits, path, {"GLM-4.5", 5120, shapeOf(160, 1536)});
}

}  // namespace glm_relay::cuda
