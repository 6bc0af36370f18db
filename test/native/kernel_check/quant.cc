// Rounded products: the bytes of a rounded matrix against the rule, activations, keys and values against
// scalar, products against scalar for every row count, every K around a tile, every group size and one to
// four threads, with the values that hurt: zeros, the largest scales, subnormals, outliers.
#include <cmath>
#include <limits>

#include "check.h"
#include "cpu/quantized_matrix.h"
#include "kernels/half.h"
#include "quant/finite.h"

namespace glm_relay {

namespace {

constexpr int kGroupSizes[] = {32, 64, 128, 0};

struct Case {
  int n;
  int k;
  WeightFormat format;
};

std::string describe(const Case& c) {
  return "n " + std::to_string(c.n) + " k " + std::to_string(c.k) +
         (c.format.type == WeightType::kInt4 ? " int4" : " int8") + " group " +
         std::to_string(c.format.groupSize) + (c.format.scales == ScaleChoice::kSearch ? " search" : "");
}

enum class Values { kPlain, kZeros, kLargest, kSubnormal, kOutliers, kCount };

// Weights or activations of one kind; `unit` is what a plain value is multiplied with.
std::vector<float> valuesOf(Values kind, size_t count, Random& random, float largest, float tiny) {
  std::vector<float> list = random.values(count);
  for (size_t i = 0; i < count; i++) {
    switch (kind) {
      case Values::kZeros:
        list[i] = i % 97 == 5 ? list[i] : 0.0f;
        break;
      case Values::kLargest:
        list[i] = random.below(2) == 0 ? largest : -largest;
        break;
      case Values::kSubnormal:
        list[i] *= tiny;
        break;
      case Values::kOutliers:
        // 30 % of the dimensions 20 to 100 times as large as the rest.
        if (i % 10 < 3) list[i] *= 20.0f + static_cast<float>(i % 81);
        break;
      default:
        break;
    }
  }
  return list;
}

// The rule of CANON.md for one group, written again in float64 where float32 is not needed.
struct Rule {
  std::vector<int> values;
  uint16_t half;
};

float errorOf(const std::vector<float>& group, float scale, int low, int high, std::vector<int>* values) {
  const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
  float lanes[16] = {};
  for (size_t i = 0; i < group.size(); i++) {
    const float q = std::nearbyintf(group[i] * inverse);
    const float kept = std::fmin(std::fmax(q, static_cast<float>(low)), static_cast<float>(high));
    const float error = group[i] - kept * scale;
    lanes[i % 16] += error * error;
    if (values != nullptr) values->push_back(static_cast<int>(kept));
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

Rule ruleOf(const std::vector<float>& group, const WeightFormat& format) {
  const bool int4 = format.type == WeightType::kInt4;
  const int low = int4 ? -8 : -127;
  const int high = int4 ? 7 : 127;
  float magnitude = 0.0f;
  float dominant = 0.0f;
  for (const float w : group) magnitude = std::fmax(magnitude, std::fabs(w));
  for (const float w : group) {
    if (w == magnitude) dominant = w;
  }
  if (dominant == 0.0f) dominant = -magnitude;
  uint16_t half = floatToHalf(magnitude / static_cast<float>(high));
  float best = errorOf(group, halfToFloat(half), low, high, nullptr);
  if (format.scales == ScaleChoice::kSearch) {
    for (int i = -8; i <= 4; i++) {
      const float top = static_cast<float>(int4 ? 8 : 127) * (1.0f + static_cast<float>(i) / 32.0f);
      const uint16_t candidate = floatToHalf(-dominant / top);
      const float error = errorOf(group, halfToFloat(candidate), low, high, nullptr);
      if (error < best) {
        best = error;
        half = candidate;
      }
    }
  }
  Rule rule = {{}, half};
  errorOf(group, halfToFloat(half), low, high, &rule.values);
  return rule;
}

int valueAt(const QuantizedMatrix& matrix, int row, int column) {
  const QuantLayout& layout = matrix.layout();
  const uint8_t* tile =
      matrix.data() + row / 32 * layout.stripBytes() + layout.tileOffset(column / kTileColumns);
  const int r = row % 32;
  const int c = column % 32;
  if (matrix.type() == WeightType::kInt8)
    return static_cast<int8_t>(tile[r / 8 * 256 + c / 4 * 32 + r % 8 * 4 + c % 4]);
  const uint8_t byte = tile[r / 16 * 256 + c / 4 * 32 + r % 8 * 4 + c % 4];
  return (r % 16 < 8 ? byte & 15 : byte >> 4) - 8;
}

void checkBytes(const Case& c, const std::vector<float>& weights, const QuantizedMatrix& matrix,
                Check& check) {
  const QuantLayout& layout = matrix.layout();
  const int groupColumns = layout.tilesPerGroup * kTileColumns;
  for (int row = 0; row < c.n; row++) {
    for (int begin = 0; begin < c.k; begin += groupColumns) {
      const int count = std::min(groupColumns, layout.tiles * kTileColumns - begin);
      std::vector<float> group(count, 0.0f);
      for (int i = 0; i < count && begin + i < c.k; i++)
        group[i] = weights[static_cast<size_t>(row) * c.k + begin + i];
      const Rule rule = ruleOf(group, c.format);
      const auto* scales = reinterpret_cast<const StripScales*>(
          matrix.data() + row / 32 * layout.stripBytes() + layout.scalesOffset(begin / groupColumns));
      const auto where = [&] {
        return describe(c) + " row " + std::to_string(row) + " column " + std::to_string(begin);
      };
      check.that(scales->half[row % 32] == rule.half, [&] { return where() + ": another scale"; });
      for (int i = 0; i < count; i++) {
        check.that(valueAt(matrix, row, begin + i) == rule.values[i],
                   [&] { return where() + ": another value"; });
      }
    }
  }
}

std::vector<ActivationTile> roundedRows(const KernelTable& kernels, const std::vector<float>& x, int rows,
                                        int k) {
  std::vector<ActivationTile> tiles(activationTiles(rows, k));
  std::memset(static_cast<void*>(tiles.data()), 0x5a, tiles.size() * sizeof(ActivationTile));
  const size_t perRow = activationTiles(1, k);
  for (int row = 0; row < rows; row += kTileRows) {
    kernels.quantizeRows(tiles.data() + row / kTileRows * perRow, x.data() + static_cast<size_t>(row) * k,
                         std::min(kTileRows, rows - row), k);
  }
  return tiles;
}

std::vector<float> product(const KernelTable& kernels, const QuantizedMatrix& matrix,
                           const std::vector<ActivationTile>& x, int rows, const float* bias, int stripBegin,
                           int stripEnd) {
  std::vector<float> y(static_cast<size_t>(rows) * matrix.n, -7.0f);
  QuantMatmulArgs args = {};
  args.y = y.data();
  args.x = x.data();
  args.strips = matrix.data();
  args.bias = bias;
  args.rows = rows;
  args.n = matrix.n;
  args.k = matrix.k;
  args.tilesPerGroup = matrix.layout().tilesPerGroup;
  args.stripBegin = stripBegin;
  args.stripEnd = stripEnd;
  (matrix.type() == WeightType::kInt4 ? kernels.matmulInt4 : kernels.matmulInt8)(args);
  return y;
}

void checkCase(const KernelTable& variant, const Case& c, const std::vector<int>& rowCounts,
               Values weightKind, Values activationKind, bool bytes, Random& random, Check& check) {
  std::atomic<uint64_t> progress{0};
  ThreadPool pool(1 + random.below(4), progress);
  const std::vector<float> weights = valuesOf(weightKind, static_cast<size_t>(c.n) * c.k, random,
                                              c.format.type == WeightType::kInt4 ? 458000.0f : 8.3e6f, 1e-7f);
  HostMatrix host = {{{reinterpret_cast<const uint8_t*>(weights.data()), c.n, c.k}},
                     false,
                     DType::kFloat32,
                     c.n,
                     c.k,
                     c.format,
                     {}};
  const QuantizedMatrix matrix(host, variant, pool);
  if (bytes) checkBytes(c, weights, matrix, check);
  const std::vector<float> bias = random.values(c.n);

  for (const int rows : rowCounts) {
    const std::vector<float> x =
        valuesOf(activationKind, static_cast<size_t>(rows) * c.k, random, 1e30f, 1e-37f);
    const std::vector<ActivationTile> expectedTiles = roundedRows(kScalarKernels, x, rows, c.k);
    const std::vector<ActivationTile> tiles = roundedRows(variant, x, rows, c.k);
    const auto what = [&] { return describe(c) + " rows " + std::to_string(rows); };
    check.that(std::memcmp(tiles.data(), expectedTiles.data(), tiles.size() * sizeof(ActivationTile)) == 0,
               [&] { return what() + ": activations are rounded in another way"; });
    const float* biasOrNot = random.below(2) == 0 ? nullptr : bias.data();
    const int stripBegin = random.below(matrix.layout().strips);
    const int stripEnd = stripBegin + 1 + random.below(matrix.layout().strips - stripBegin);
    const std::vector<float> expected =
        product(kScalarKernels, matrix, expectedTiles, rows, biasOrNot, stripBegin, stripEnd);
    check.equal(product(variant, matrix, tiles, rows, biasOrNot, stripBegin, stripEnd), expected, what());
  }
}

// The formula once more, from floats: scalar itself is held against it.
void checkFormula(const KernelTable& variant, Random& random, Check& check) {
  const Case c = {37, 200, {WeightType::kInt4, 64, ScaleChoice::kSearch}};
  for (const WeightType type : {WeightType::kInt4, WeightType::kInt8}) {
    Case typed = c;
    typed.format.type = type;
    std::atomic<uint64_t> progress{0};
    ThreadPool pool(1, progress);
    const std::vector<float> weights = random.values(static_cast<size_t>(c.n) * c.k);
    HostMatrix host = {{{reinterpret_cast<const uint8_t*>(weights.data()), c.n, c.k}},
                       false,
                       DType::kFloat32,
                       c.n,
                       c.k,
                       typed.format,
                       {}};
    const QuantizedMatrix matrix(host, variant, pool);
    const std::vector<float> x = random.values(static_cast<size_t>(5) * c.k);
    const std::vector<float> y =
        product(variant, matrix, roundedRows(variant, x, 5, c.k), 5, nullptr, 0, matrix.layout().strips);
    std::vector<float> expected;
    for (int m = 0; m < 5; m++) {
      for (int n = 0; n < c.n; n++) {
        float sum = 0.0f;
        for (int begin = 0; begin < c.k; begin += 32) {
          const int end = std::min(c.k, begin + 32);
          float magnitude = 0.0f;
          for (int i = begin; i < end; i++) magnitude = std::fmax(magnitude, std::fabs(x[m * c.k + i]));
          int dot = 0;
          for (int i = begin; i < end; i++) {
            const float q =
                magnitude < 0x1p-100f ? 0.0f : std::nearbyintf(x[m * c.k + i] * (127.0f / magnitude));
            dot += static_cast<int>(q) * valueAt(matrix, n, i);
          }
          const auto* scales =
              reinterpret_cast<const StripScales*>(matrix.data() + n / 32 * matrix.layout().stripBytes() +
                                                   matrix.layout().scalesOffset(begin / 64));
          const float scale =
              halfToFloat(scales->half[n % 32]) * (magnitude < 0x1p-100f ? 0.0f : magnitude / 127.0f);
          sum = std::fmaf(static_cast<float>(dot), scale, sum);
        }
        expected.push_back(sum);
      }
    }
    check.equal(y, expected, "the formula of " + describe(typed));
  }
}

void checkHeads(const KernelTable& variant, Random& random, Check& check) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (int headDim = 1; headDim <= 70; headDim++) {
    for (int kind = 0; kind < static_cast<int>(Values::kCount) + 3; kind++) {
      std::vector<float> head =
          valuesOf(static_cast<Values>(std::min(kind, static_cast<int>(Values::kCount))), headDim, random,
                   8.3e6f, 1e-7f);
      if (kind == static_cast<int>(Values::kCount)) head[random.below(headDim)] = infinity;
      if (kind == static_cast<int>(Values::kCount) + 1) head[random.below(headDim)] = std::nanf("");
      if (kind == static_cast<int>(Values::kCount) + 2) head[random.below(headDim)] = 1e9f;
      std::vector<int8_t> expected(headDim + 1, 77);
      std::vector<int8_t> got(headDim + 1, 77);
      uint16_t expectedScale = 1;
      uint16_t scale = 2;
      kScalarKernels.quantizeHead(expected.data(), &expectedScale, head.data(), headDim);
      variant.quantizeHead(got.data(), &scale, head.data(), headDim);
      const auto what = [&] {
        return "head of " + std::to_string(headDim) + " kind " + std::to_string(kind);
      };
      check.that(scale == expectedScale && got == expected, what);
      // What cannot be stored must not come back as a number.
      const bool lost = kind >= static_cast<int>(Values::kCount);
      check.that(std::isfinite(halfToFloat(scale)) != lost, what);
      for (int d = 0; d < headDim && !lost; d++) {
        const float restored = static_cast<float>(got[d]) * halfToFloat(scale);
        // Half a step, what FP16 loses of the scale, and what a subnormal scale may be off.
        const float bound = 0.51f * halfToFloat(scale) + 0.0005f * std::fabs(head[d]) + 127.0f * 0x1p-25f;
        check.that(std::fabs(restored - head[d]) <= bound, what);
      }
    }
  }
}

// A NaN or an infinity among the activations reaches every result of its row and of no other.
void checkNotFinite(const KernelTable& variant, Random& random, Check& check) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const Case c = {40, 96, {WeightType::kInt4, 32, ScaleChoice::kAbsMax}};
    std::atomic<uint64_t> progress{0};
    ThreadPool pool(1, progress);
    std::vector<float> weights(static_cast<size_t>(c.n) * c.k, 0.5f);
    HostMatrix host = {{{reinterpret_cast<const uint8_t*>(weights.data()), c.n, c.k}},
                       false,
                       DType::kFloat32,
                       c.n,
                       c.k,
                       c.format,
                       {}};
    const QuantizedMatrix matrix(host, variant, pool);
    std::vector<float> x = random.values(static_cast<size_t>(6) * c.k);
    x[4 * c.k + 50] = bad;
    const std::vector<float> y =
        product(variant, matrix, roundedRows(variant, x, 6, c.k), 6, nullptr, 0, matrix.layout().strips);
    for (int i = 0; i < 6 * c.n; i++) {
      check.that(std::isfinite(y[i]) == (i / c.n != 4),
                 [&] { return "not finite, element " + std::to_string(i); });
    }
  }
}

void checkRefused(Check& check) {
  std::atomic<uint64_t> progress{0};
  ThreadPool pool(2, progress);
  const struct {
    float value;
    const char* message;
  } cases[] = {{std::nanf(""), "the value in row 33, column 7 is NaN"},
               {-std::numeric_limits<float>::infinity(), "the value in row 33, column 7 is infinite"},
               {1e7f, "too large for FP16 scales"}};
  for (const WeightType type : {WeightType::kInt4, WeightType::kInt8}) {
    for (const auto& bad : cases) {
      std::vector<float> weights(static_cast<size_t>(40) * 50, 1.0f);
      weights[33 * 50 + 7] = bad.value;
      std::string message = "nothing was thrown";
      try {
        const QuantizedMatrix matrix({{{reinterpret_cast<const uint8_t*>(weights.data()), 40, 50}},
                                      false,
                                      DType::kFloat32,
                                      40,
                                      50,
                                      {type, 32, ScaleChoice::kSearch},
                                      {}},
                                     kScalarKernels, pool);
      } catch (const WeightError& error) {
        message = error.what();
      }
      check.that(message.find(bad.message) != std::string::npos, [&] { return "refusal: " + message; });
    }
  }
}

}  // namespace

void checkQuant(const KernelTable& variant, Check& check) {
  Random random(11);
  std::vector<int> allRows;
  for (int rows = 1; rows <= 70; rows++) allRows.push_back(rows);
  const std::vector<int> manyRows = {127, 128, 129, 191, 193, 512};
  const std::vector<int> someRows = {1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 70};
  for (const WeightType type : {WeightType::kInt4, WeightType::kInt8}) {
    for (const int groupSize : kGroupSizes) {
      for (const ScaleChoice scales : {ScaleChoice::kAbsMax, ScaleChoice::kSearch}) {
        const WeightFormat format = {type, groupSize, scales};
        checkCase(variant, {70, 544, format}, allRows, Values::kPlain, Values::kPlain, true, random, check);
        checkCase(variant, {33, 288, format}, manyRows, Values::kPlain, Values::kPlain, false, random, check);
        for (const int k : {1, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 160, 511, 512, 513}) {
          for (const int n : {1, 31, 32, 33}) {
            checkCase(variant, {n, k, format}, {1, 4, 6}, Values::kPlain, Values::kPlain, true, random,
                      check);
          }
        }
        for (int kind = 0; kind < static_cast<int>(Values::kCount); kind++) {
          const Values values = static_cast<Values>(kind);
          checkCase(variant, {65, 288, format}, someRows, values, Values::kPlain, true, random, check);
          checkCase(variant, {65, 288, format}, someRows, Values::kPlain, values, false, random, check);
        }
      }
    }
  }
  checkFormula(variant, random, check);
  checkHeads(variant, random, check);
  checkNotFinite(variant, random, check);
  checkRefused(check);
}

}  // namespace glm_relay
