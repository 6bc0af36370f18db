#include "cuda/kernels/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "product_case.h"

namespace glm_relay::cuda {

namespace {

constexpr double kLogitBound = 2e-6;
// exp of a GPU, and of an emulated one, is not the canon's to the last bit.
constexpr float kWeightBound = 1e-6f;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

ExpertShape shapeOf(int count, int perToken, int groups = 1, int groupsPerToken = 1, bool normalize = true) {
  ExpertShape shape;
  shape.count = count;
  shape.perToken = perToken;
  shape.groups = groups;
  shape.groupsPerToken = groupsPerToken;
  shape.normalizeWeights = normalize;
  shape.scale = 2.5;
  return shape;
}

std::string nameOf(const ExpertShape& shape, int rows) {
  return std::to_string(rows) + " rows, " + std::to_string(shape.perToken) + " of " +
         std::to_string(shape.count) + " experts in " + std::to_string(shape.groupsPerToken) + " of " +
         std::to_string(shape.groups) + " groups";
}

bool sameWeight(float got, float expected) {
  if (std::isnan(got) || std::isnan(expected)) return std::isnan(got) && std::isnan(expected);
  return std::fabs(got - expected) <= kWeightBound * std::max(1.0f, std::fabs(expected));
}

// Logits on the device, chosen from and grouped.
struct Choices {
  Choices(const ExpertShape& expertShape, const std::vector<float>& logits, const std::vector<float>& bias,
          int tileRowCount)
      : shape(expertShape),
        rows(static_cast<int>(logits.size()) / shape.count),
        tileRows(tileRowCount),
        tileCount(expertTiles(rows, shape, tileRows)),
        choices(static_cast<size_t>(rows) * shape.perToken),
        slots(expertSlots(rows, shape)),
        logitsOnDevice(logits),
        biasOnDevice(bias),
        chosen(choices),
        parts(choices),
        rowOfSlot(static_cast<size_t>(slots)),
        tiles(static_cast<size_t>(tileCount)) {}

  RouterArgs router() const {
    RouterArgs args = {};
    args.logits = logitsOnDevice.get();
    args.chosen = chosen.get();
    args.bias = biasOnDevice.get();
    args.shape = shape;
    args.rows = rows;
    return args;
  }
  GroupArgs group() const { return {parts.get(), rowOfSlot.get(), tiles.get(), slots, tileRows, tileCount}; }

  const ExpertShape shape;
  const int rows;
  const int tileRows;
  const int tileCount;
  const size_t choices;
  const int slots;
  const OnDevice<float> logitsOnDevice;
  const OnDevice<float> biasOnDevice;
  const OnDevice<ChosenExpert> chosen;
  const OnDevice<ExpertPart> parts;
  const OnDevice<int32_t> rowOfSlot;
  const OnDevice<ExpertTile> tiles;
};

std::vector<ChosenExpert> onHost(const ExpertShape& shape, const std::vector<float>& logits,
                                 const std::vector<float>& bias) {
  const size_t rows = logits.size() / static_cast<size_t>(shape.count);
  std::vector<ChosenExpert> chosen(rows * static_cast<size_t>(shape.perToken));
  std::vector<float> scratch(2 * static_cast<size_t>(shape.count));
  for (size_t row = 0; row < rows; row++) {
    glm_relay::chooseExperts(chosen.data() + row * shape.perToken, logits.data() + row * shape.count,
                             bias.data(), shape, scratch.data());
  }
  return chosen;
}

// Every row in one place beside the other rows of each of its experts, in order, and every place in one tile.
void checkGroups(Check& check, const Choices& choices, const std::vector<ChosenExpert>& chosen,
                 const std::string& what) {
  const std::vector<ExpertPart> parts = choices.parts.read();
  const std::vector<int32_t> rowOfSlot = choices.rowOfSlot.read();
  const std::vector<ExpertTile> tiles = choices.tiles.read();
  size_t slot = 0;
  size_t tile = 0;
  bool right = true;
  for (int expert = 0; expert < choices.shape.count; expert++) {
    const size_t first = slot;
    for (size_t i = 0; i < chosen.size(); i++) {
      if (chosen[i].expert != expert) continue;
      right = right && parts[i].slot == static_cast<int32_t>(slot) &&
              sameBits({parts[i].weight}, {chosen[i].weight}) &&
              rowOfSlot[slot] == static_cast<int32_t>(i) / choices.shape.perToken;
      slot++;
    }
    const size_t end = slot;
    for (; slot % kTileRows != 0; slot++) right = right && rowOfSlot[slot] == -1;
    for (size_t begin = first; begin < end; begin += choices.tileRows, tile++) {
      const size_t rows = std::min(end - begin, static_cast<size_t>(choices.tileRows));
      right = right && tile < tiles.size() && tiles[tile].expert == expert &&
              tiles[tile].firstRow == static_cast<int32_t>(begin) &&
              tiles[tile].rows == static_cast<int32_t>(rows);
    }
  }
  for (; slot < rowOfSlot.size(); slot++) right = right && rowOfSlot[slot] == -1;
  for (; tile < tiles.size(); tile++) right = right && tiles[tile].rows == 0;
  check.that(right, [&] { return what + ": rows are not grouped by what they chose"; });
}

void checkChoice(Check& check, const ExpertShape& shape, const std::vector<float>& logits,
                 const std::vector<float>& bias, const std::string& kind) {
  const std::vector<ChosenExpert> expected = onHost(shape, logits, bias);
  const int rows = static_cast<int>(logits.size()) / shape.count;
  const std::string what = kind + " logits, " + nameOf(shape, rows);
  for (int tileRows : {8, 16, 64}) {
    const Choices together(shape, logits, bias, tileRows);
    chooseAndGroup(stream(), together.router(), together.group());
    const std::vector<ChosenExpert> got = together.chosen.read();
    bool same = true;
    for (size_t i = 0; i < expected.size(); i++) {
      same = same && got[i].expert == expected[i].expert && sameWeight(got[i].weight, expected[i].weight);
    }
    check.that(same, [&] { return what + ": not the choice of chooseExperts"; });
    checkGroups(check, together, got, what);

    // In two kernels, and with a row alone.
    const Choices apart(shape, logits, bias, tileRows);
    chooseExperts(stream(), apart.router());
    groupByExpert(stream(), apart.router(), apart.group());
    const auto weights = [](const std::vector<ChosenExpert>& list, size_t first, size_t count) {
      std::vector<float> out;
      for (size_t i = first; i < first + count; i++) {
        out.push_back(static_cast<float>(list[i].expert));
        out.push_back(list[i].weight);
      }
      return out;
    };
    check.equal(weights(apart.chosen.read(), 0, got.size()), weights(got, 0, got.size()),
                what + ", in two kernels");
    checkGroups(check, apart, got, what + ", in two kernels");
    const int row = rows / 2;
    const std::vector<float> ofRow(logits.begin() + static_cast<int64_t>(row) * shape.count,
                                   logits.begin() + static_cast<int64_t>(row + 1) * shape.count);
    const Choices alone(shape, ofRow, bias, tileRows);
    chooseAndGroup(stream(), alone.router(), alone.group());
    const size_t perToken = static_cast<size_t>(shape.perToken);
    check.equal(weights(alone.chosen.read(), 0, perToken), weights(got, row * perToken, perToken),
                what + ", one row alone");
  }
}

void checkChoices(Check& check, Random& random) {
  // Around the borders of warps (32 experts), of words of rows (32) and of the two ways to choose (32 rows).
  const ExpertShape shapes[] = {shapeOf(1, 1),
                                shapeOf(8, 2),
                                shapeOf(31, 3, 1, 1, false),
                                shapeOf(33, 8),
                                shapeOf(128, 8),
                                shapeOf(160, 8, 8, 3),
                                shapeOf(64, 4, 64, 9),
                                shapeOf(66, 6, 33, 4),
                                shapeOf(40, 40),
                                shapeOf(6, 4, 3, 2, false)};
  // Not symmetric around 0, or sums of two scores would be as good as each other but for a last bit.
  // Their sigmoids are the same on every machine, in sums with the biases as well.
  const float few[] = {-30.0f, 0.0f, 30.0f};
  const float fewBiases[] = {0.0f, 0.25f, -0.5f};
  for (const ExpertShape& shape : shapes) {
    for (int rows : {1, 5, 32, 33, 70}) {
      const size_t count = static_cast<size_t>(rows) * shape.count;
      std::vector<float> bias = random.values(shape.count, 0.1f);
      checkChoice(check, shape, random.values(count, 6.0f), bias, "random");

      // Many experts are as good as each other: the lowest id wins.
      std::vector<float> logits(count);
      for (float& value : logits) value = few[random.below(3)];
      for (float& value : bias) value = fewBiases[random.below(3)];
      checkChoice(check, shape, logits, bias, "equal");
      checkChoice(check, shape, std::vector<float>(count, 1.5f), std::vector<float>(shape.count), "one");

      // Numbers that are none, single ones and a whole row; and scores that saturate.
      for (float& value : logits) {
        const int kind = random.below(6);
        if (kind == 0) value = kNaN;
        if (kind == 1) value = 1e30f;
        if (kind == 2) value = -std::numeric_limits<float>::infinity();
      }
      std::fill(logits.begin(), logits.begin() + shape.count, kNaN);
      checkChoice(check, shape, logits, bias, "broken");
    }
  }
}

// All rows with the same experts, or as far apart as they can be.
void checkFullTiles(Check& check) {
  const ExpertShape shape = shapeOf(24, 2);
  for (int rows : {16, 17, 64, 65, 100}) {
    for (int apart : {0, 1}) {
      std::vector<float> logits(static_cast<size_t>(rows) * shape.count, -1.0f);
      for (int row = 0; row < rows; row++) {
        float* of = logits.data() + static_cast<size_t>(row) * shape.count;
        of[(apart * row * 2 + 3) % shape.count] = 2.0f;
        of[(apart * row * 2 + 8) % shape.count] = 1.0f;
      }
      checkChoice(check, shape, logits, std::vector<float>(shape.count), apart ? "spread" : "crowded");
    }
  }
}

// Of the rows [first, first + count).
std::vector<float> logitsOf(const ProductCase& router, int first, int count) {
  const OnDevice<float> x(
      std::vector<float>(router.x.begin() + static_cast<int64_t>(first) * router.k,
                         router.x.begin() + static_cast<int64_t>(first + count) * router.k));
  const OnDevice<float> logits(static_cast<size_t>(count) * router.n);
  const ProductArgs matrix = router.args();
  RouterArgs args = {};
  args.logits = logits.get();
  args.x = x.get();
  args.weights = matrix.weights;
  args.rowScales = matrix.rowScales;
  args.shape = shapeOf(router.n, 1);
  args.rows = count;
  args.k = router.k;
  args.columnBlocks = matrix.columnBlocks;
  routerLogits(stream(), args);
  return logits.read();
}

// Weights that are FP16 numbers, which a GPU has without a loss.
void checkLogits(Check& check) {
  uint64_t seed = 100;
  for (int experts : {1, 8, 13, 128}) {
    for (int k : {16, 97, 128, 416, 2304}) {
      for (int rows : {1, 4, 9}) {
        const ProductCase router(rows, experts, k, {}, DType::kFloat16, false, seed++);
        const std::string what = "router of " + router.name();
        std::vector<double> expected;
        for (int i = 0; i < rows * experts; i++) {
          const float* row = router.x.data() + static_cast<int64_t>(i / experts) * k;
          expected.push_back(std::inner_product(
              row, row + k, router.weights.data() + static_cast<int64_t>(i % experts) * k, 0.0));
        }
        const std::vector<float> got = logitsOf(router, 0, rows);
        check.near(got, expected, kLogitBound, what);
        const int last = rows - 1;
        check.equal(logitsOf(router, last, 1),
                    {got.begin() + static_cast<int64_t>(last) * experts, got.end()},
                    what + ", one row alone");
      }
    }
  }
}

const WeightFormat kFormats[] = {
    {WeightType::kStored, 0, ScaleChoice::kAbsMax},
    {WeightType::kInt8, 64, ScaleChoice::kAbsMax},
    {WeightType::kInt4, 32, ScaleChoice::kAbsMax},
};

// FP16 rows as products take them.
struct RowsOnDevice {
  RowsOnDevice(int rowCount, int columns)
      : rows(rowCount),
        paddedColumns(columns),
        halves(static_cast<size_t>(halvesOf(rows, paddedColumns))),
        scales(static_cast<size_t>(rows)) {}
  RowsOnDevice(const ProductCase& matrix, const std::vector<float>& x)
      : RowsOnDevice(static_cast<int>(x.size()) / matrix.k, matrix.paddedColumns()) {
    const OnDevice<float> floats(x);
    halveRows(stream(), view(), floats.get(), rows, matrix.k);
    check(cudaStreamSynchronize(stream()), "halving rows");
  }
  HalfRows view(const int32_t* owners = nullptr) const {
    return {halves.get(), scales.get(), paddedColumns, owners};
  }
  // Their product with the matrix, without bias.
  ProductArgs times(const ProductCase& matrix, float* y) const {
    ProductArgs args = matrix.args();
    args.y = y;
    args.x = halves.get();
    args.xScales = scales.get();
    args.rows = rows;
    return args;
  }

  const int rows;
  const int paddedColumns;
  const OnDevice<uint16_t> halves;
  const OnDevice<float> scales;
};

// Experts of rows that are shared out as `rowsOf` says, in one grid, and each row alone by the product that
// knows no groups. Rows of x are in any order.
void checkGrouped(Check& check, Path path, const WeightFormat& format, int n, int k,
                  const std::vector<int>& rowsOf, uint64_t seed) {
  Random random(seed);
  constexpr int kXRows = 37;
  std::vector<std::unique_ptr<ProductCase>> experts;
  std::vector<ExpertMatrix> matrices;
  std::vector<int32_t> owners;
  std::vector<float> expected;
  // Each case has rows of x of its own; the first one's are everybody's.
  for (size_t i = 0; i < rowsOf.size(); i++) {
    experts.push_back(std::make_unique<ProductCase>(i == 0 ? kXRows : 1, n, k, format, DType::kFloat32, false,
                                                    seed * 100 + i));
    const ProductArgs args = experts.back()->args();
    matrices.push_back({args.weights, args.rowScales});
    const ProductCase& first = *experts.front();
    for (int row = 0; row < rowsOf[i]; row++) {
      owners.push_back(random.below(kXRows));
      const auto x = first.x.begin() + static_cast<int64_t>(owners.back()) * k;
      const RowsOnDevice alone(first, {x, x + k});
      const OnDevice<float> y(static_cast<size_t>(n));
      product(stream(), path, format.type, alone.times(*experts.back(), y.get()));
      const std::vector<float> got = y.read();
      expected.insert(expected.end(), got.begin(), got.end());
    }
    while (owners.size() % kTileRows != 0) owners.push_back(-1);
  }
  const ProductCase& first = *experts.front();
  const int slots = static_cast<int>(owners.size());
  const OnDevice<int32_t> ownersOnDevice(owners);
  const RowsOnDevice x(first, first.x);
  const RowsOnDevice gathered(slots, first.paddedColumns());
  gatherHalves(stream(), gathered.view(ownersOnDevice.get()), x.view(), slots);
  const OnDevice<ExpertMatrix> matricesOnDevice(matrices);
  const OnDevice<float> y(static_cast<size_t>(slots) * n);
  for (ProductKernel kernel : kGroupedKernels) {
    // Tiles without rows lie between and behind the others.
    const int tileRows = cuda::rowsOf(kernel);
    std::vector<ExpertTile> tiles = {{0, 0, 0}};
    int firstRow = 0;
    for (size_t expert = 0; expert < rowsOf.size(); expert++) {
      for (int done = 0; done < rowsOf[expert]; done += tileRows) {
        tiles.push_back(
            {static_cast<int32_t>(expert), firstRow + done, std::min(tileRows, rowsOf[expert] - done)});
      }
      firstRow += (rowsOf[expert] + kTileRows - 1) / kTileRows * kTileRows;
    }
    tiles.push_back({0, 0, 0});
    const OnDevice<ExpertTile> tilesOnDevice(tiles);
    ProductArgs args = gathered.times(first, y.get());
    args.weights = nullptr;
    args.rowScales = nullptr;
    groupedProduct(stream(), path, format.type, kernel, args,
                   {matricesOnDevice.get(), tilesOnDevice.get(), static_cast<int>(tiles.size())});
    const std::vector<float> all = y.read();
    std::vector<float> got;
    for (int slot = 0; slot < slots; slot++) {
      const auto row = all.begin() + static_cast<int64_t>(slot) * n;
      if (owners[slot] >= 0) got.insert(got.end(), row, row + n);
    }
    check.equal(got, expected,
                std::string(nameOf(path)) + " product of grouped rows, " + first.name() + ", tiles of " +
                    std::to_string(tileRows));
  }
}

void checkGroupedProducts(Check& check) {
  uint64_t seed = 1;
  for (Path path : kPaths) {
    prepareProducts(path);
    for (const WeightFormat& format : kFormats) {
      checkGrouped(check, path, format, 24, 160, {1, 1, 0, 1, 2}, seed++);
      checkGrouped(check, path, format, 70, 300, {15, 16, 17, 0, 33}, seed++);
      checkGrouped(check, path, format, 40, 97, {65, 1, 64}, seed++);
      checkGrouped(check, path, format, 8, 128, {0, 3}, seed++);
    }
  }
}

}  // namespace

void checkExperts(Check& check) {
  Random random(21);
  checkLogits(check);
  checkChoices(check, random);
  checkFullTiles(check);
  checkGroupedProducts(check);
}

}  // namespace glm_relay::cuda
