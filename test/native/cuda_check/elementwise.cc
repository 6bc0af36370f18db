#include <algorithm>
#include <cmath>

#include "check.h"
#include "cuda/kernels/rows.h"
#include "cuda/weight_layout.h"
#include "kernels/half.h"

namespace glm_relay::cuda {

namespace {

constexpr double kFloatBound = 2e-6;
const int kSizes[] = {1, 31, 64, 257, 1000};
// Rows of which a thread has several columns.
const int kWideNorms[] = {5001, 12288};
const int kWideActivations[] = {5001, 13696, 20000};
constexpr int kRows = 3;
constexpr int kMaxShift = 100;

std::string at(const char* what, int size) { return std::string(what) + " of " + std::to_string(size); }

// Rows that an operation gives as FP16 as well.
class HalvedRows {
 public:
  HalvedRows(int rows, int size)
      : rows_(rows),
        size_(size),
        padded_((size + kBlockColumns - 1) / kBlockColumns * kBlockColumns),
        halves_(static_cast<size_t>(halvesOf(rows, padded_))),
        scales_(static_cast<size_t>(rows)) {}

  HalfRows to() const { return {halves_.get(), scales_.get(), padded_}; }
  // They are y, each row times the power of two that brings its largest magnitude into [2^14, 2^15), or
  // 2^100.
  void check(Check& check, const OnDevice<float>& y, const std::string& what) const {
    const std::vector<float> rows = y.read();
    std::vector<float> scales, halves;
    for (int row = 0; row < rows_; row++) {
      const float* values = rows.data() + static_cast<size_t>(row) * size_;
      int exponent = 0;
      float largest = 0.0f;
      for (int i = 0; i < size_; i++) largest = std::max(largest, std::fabs(values[i]));
      std::frexp(largest, &exponent);
      scales.push_back(std::ldexp(1.0f, largest == 0.0f ? -kMaxShift : std::max(exponent - 15, -kMaxShift)));
      for (int i = 0; i < padded_; i++) {
        halves.push_back(i < size_ ? halfToFloat(floatToHalf(values[i] / scales.back())) : 0.0f);
      }
    }
    check.equal(scales_.read(), scales, what + ", factors of FP16 rows");
    check.equal(values(), halves, what + ", as FP16");
  }

 private:
  std::vector<float> values() const {
    const std::vector<uint16_t> halves = halves_.read();
    std::vector<float> values;
    for (int row = 0; row < rows_; row++) {
      for (int i = 0; i < padded_; i++) {
        values.push_back(halfToFloat(halves[static_cast<size_t>(halfIndex(row, i, padded_))]));
      }
    }
    return values;
  }

  const int rows_;
  const int size_;
  const int padded_;
  OnDevice<uint16_t> halves_;
  OnDevice<float> scales_;
};

void checkNorms(Check& check, Random& random, int size) {
  const std::vector<float> x = random.values(static_cast<size_t>(kRows) * size, 3.0f);
  const std::vector<float> weight = random.values(size);
  const std::vector<float> bias = random.values(size);
  const OnDevice<float> in(x), w(weight), b(bias), y(x.size());
  const double eps = static_cast<double>(1e-5f);
  std::vector<double> rms;
  std::vector<double> layer;
  for (int row = 0; row < kRows; row++) {
    const float* from = x.data() + static_cast<size_t>(row) * size;
    double sum = 0.0;
    double square = 0.0;
    for (int i = 0; i < size; i++) {
      sum += from[i];
      square += static_cast<double>(from[i]) * from[i];
    }
    const double mean = sum / size;
    double variance = 0.0;
    for (int i = 0; i < size; i++) variance += (from[i] - mean) * (from[i] - mean);
    for (int i = 0; i < size; i++) {
      rms.push_back(from[i] / std::sqrt(square / size + eps) * weight[i]);
      layer.push_back((from[i] - mean) / std::sqrt(variance / size + eps) * weight[i] + bias[i]);
    }
  }
  const HalvedRows halved(kRows, size);
  rmsNormRows(stream(), halved.to(), y.get(), in.get(), nullptr, w.get(), kRows, size, 1e-5f);
  const std::vector<float> all = y.read();
  check.near(all, rms, kFloatBound, at("RMSNorm", size));
  halved.check(check, y, at("RMSNorm", size));
  rmsNormRows(stream(), halved.to(), y.get(), in.get() + size, nullptr, w.get(), 1, size, 1e-5f);
  const std::vector<float> alone = y.read();
  check.equal({alone.begin(), alone.begin() + size}, {all.begin() + size, all.begin() + 2 * size},
              at("RMSNorm of one row", size));
  layerNormRows(stream(), halved.to(), y.get(), in.get(), nullptr, w.get(), b.get(), kRows, size, 1e-5f);
  check.near(y.read(), layer, kFloatBound, at("LayerNorm", size));
  halved.check(check, y, at("LayerNorm", size));

  // The sum in front of a norm, in its kernel and by itself: the same bits.
  const OnDevice<float> other(random.values(static_cast<size_t>(kRows) * size));
  const OnDevice<float> alone1(x.size()), alone2(x.size());
  for (int i = 0; i < kDTypeCount; i++) {
    const DType dtype = static_cast<DType>(i);
    const RowSum first = {alone1.get(), in.get(), 1.7f, other.get(), dtype};
    const RowSum second = {alone2.get(), in.get(), 1.7f, other.get(), dtype};
    sumRows(stream(), first, static_cast<int64_t>(kRows) * size);
    const auto compare = [&](const char* what, auto norm) {
      norm(static_cast<const RowSum*>(nullptr));
      const std::vector<float> expected = y.read();
      norm(&second);
      check.equal(y.read(), expected, at(what, size));
      check.equal(alone2.read(), alone1.read(), at("the sum in front of a norm", size));
    };
    compare("RMSNorm of a sum", [&](const RowSum* sum) {
      rmsNormRows(stream(), halved.to(), y.get(), first.x, sum, w.get(), kRows, size, 1e-5f);
    });
    compare("LayerNorm of a sum", [&](const RowSum* sum) {
      layerNormRows(stream(), halved.to(), y.get(), first.x, sum, w.get(), b.get(), kRows, size, 1e-5f);
    });
  }
}

double gelu(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
double geluByErf(double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }

void checkActivations(Check& check, Random& random, int size) {
  const size_t count = static_cast<size_t>(kRows) * size;
  std::vector<float> x = random.values(2 * count, 12.0f);
  const OnDevice<float> in(x), y(count);
  std::vector<double> silu, tanh, erf;
  for (int row = 0; row < kRows; row++) {
    for (int i = 0; i < size; i++) {
      const double first = x[static_cast<size_t>(row) * 2 * size + i];
      const double second = x[static_cast<size_t>(row) * 2 * size + size + i];
      silu.push_back(first / (1.0 + std::exp(-first)) * second);
      erf.push_back(first * geluByErf(second));
    }
  }
  for (size_t i = 0; i < count; i++) tanh.push_back(gelu(x[i]));
  const HalvedRows halved(kRows, size);
  const auto checkOne = [&](Activation activation, const std::vector<double>& expected, const char* name) {
    activateRows(stream(), halved.to(), y.get(), activation, in.get(), kRows, size);
    check.near(y.read(), expected, kFloatBound, at(name, size));
    halved.check(check, y, at(name, size));
    const HalvedRows alone(kRows, size);
    activateRows(stream(), alone.to(), nullptr, activation, in.get(), kRows, size);
    alone.check(check, y, at(name, size) + " as FP16 alone");
    // By several blocks for a row.
    const HalvedRows shared(kRows, size);
    const OnDevice<uint32_t> maxima(size_t{kRows} * kRowShares);
    const OnDevice<float> same(count);
    HalfRows to = shared.to();
    to.maxima = maxima.get();
    activateRows(stream(), to, same.get(), activation, in.get(), kRows, size);
    check.equal(same.read(), y.read(), at(name, size) + ", shared");
    shared.check(check, y, at(name, size) + ", shared");
  };
  checkOne(Activation::kGatedSilu, silu, "gated silu");
  checkOne(Activation::kGatedGelu, erf, "gated gelu");
  checkOne(Activation::kGelu, tanh, "gelu");
  halveRows(stream(), halved.to(), in.get(), kRows, size);
  halved.check(check, in, at("FP16 rows", size));
}

void checkSums(Check& check, Random& random, int size) {
  const std::vector<float> x = random.values(size);
  const std::vector<float> base = random.values(size);
  const OnDevice<float> y(x), from(base), delta(x);
  std::vector<float> sum(x), scaled(x);
  for (int i = 0; i < size; i++) {
    sum[i] = x[i] + base[i];
    scaled[i] = std::fmaf(base[i], 1.7f, x[i]);
  }
  sumRows(stream(), {y.get(), y.get(), 1.0f, from.get(), DType::kFloat32}, size);
  check.equal(y.read(), sum, at("sum", size));
  sumRows(stream(), {y.get(), from.get(), 1.7f, delta.get(), DType::kFloat32}, size);
  check.equal(y.read(), scaled, at("scaled sum", size));

  const std::vector<int32_t> rows = {2, 0, 2};
  const std::vector<float> table = random.values(static_cast<size_t>(kRows) * size);
  std::vector<float> gathered;
  for (int row : rows) {
    gathered.insert(gathered.end(), table.begin() + row * size, table.begin() + (row + 1) * size);
  }
  const OnDevice<float> source(table), to(gathered.size());
  const OnDevice<int32_t> chosen(rows);
  gatherRows(stream(), to.get(), source.get(), chosen.get(), static_cast<int>(rows.size()), size);
  check.equal(to.read(), gathered, at("rows", size));
}

// Parts of experts, added in order of rank.
void checkMixture(Check& check, Random& random, int size) {
  constexpr int kPerToken = 2;
  const std::vector<float> parts = random.values(static_cast<size_t>(kRows) * kPerToken * size);
  std::vector<ExpertPart> chosen;
  std::vector<float> expected;
  for (int row = 0; row < kRows; row++) {
    // Each part belongs to one row, in no order.
    for (int rank = 0; rank < kPerToken; rank++) {
      chosen.push_back({(row * kPerToken + rank) * 5 % (kRows * kPerToken), random.unit()});
    }
    const ExpertPart* ofRow = chosen.data() + chosen.size() - kPerToken;
    for (int i = 0; i < size; i++) {
      const float first = parts[static_cast<size_t>(ofRow[0].slot) * size + i] * ofRow[0].weight;
      expected.push_back(
          std::fmaf(parts[static_cast<size_t>(ofRow[1].slot) * size + i], ofRow[1].weight, first));
    }
  }
  const OnDevice<float> in(parts), y(expected.size());
  const OnDevice<ExpertPart> ofRows(chosen);
  mixParts(stream(), y.get(), in.get(), ofRows.get(), kRows, kPerToken, size);
  check.equal(y.read(), expected, at("mixture", size));
}

// All 65536 numbers of a type, and float32 numbers between them.
void checkConversions(Check& check, DType dtype) {
  const auto value = [&](uint32_t bits) {
    return dtype == DType::kFloat16 ? halfToFloat(static_cast<uint16_t>(bits))
                                    : bfloatToFloat(static_cast<uint16_t>(bits));
  };
  const auto rounded = [&](float x) {
    return value(dtype == DType::kFloat16 ? floatToHalf(x) : floatToBfloat(x));
  };
  std::vector<uint16_t> bits;
  std::vector<float> wide, between, expected;
  for (uint32_t i = 0; i < 65536; i++) {
    bits.push_back(static_cast<uint16_t>(i));
    wide.push_back(value(i));
    const float x = bitsFloat(floatBits(value(i)) + (i * 2654435761u >> 19));
    between.push_back(x);
    expected.push_back(rounded(x));
  }
  const OnDevice<uint16_t> narrowIn(bits), narrowOut(bits.size());
  const OnDevice<float> wideOut(bits.size()), x(between);
  const int64_t count = static_cast<int64_t>(bits.size());
  widen(stream(), wideOut.get(), narrowIn.get(), count, dtype);
  check.equal(wideOut.read(), wide, "widening");
  narrow(stream(), narrowOut.get(), x.get(), count, dtype);
  widen(stream(), wideOut.get(), narrowOut.get(), count, dtype);
  check.equal(wideOut.read(), expected, "narrowing");
  // Sums with nothing are rounded alone.
  const OnDevice<float> zeros(std::vector<float>(between.size(), -0.0f)), scaled(between.size());
  sumRows(stream(), {scaled.get(), x.get(), 1.0f, zeros.get(), dtype}, count);
  sumRows(stream(), {x.get(), x.get(), 1.0f, zeros.get(), dtype}, count);
  check.equal(x.read(), expected, "rounding of sums");
  check.equal(scaled.read(), expected, "rounding of scaled sums");
}

}  // namespace

void checkElementwise(Check& check) {
  Random random(11);
  for (int size : kSizes) {
    checkNorms(check, random, size);
    checkActivations(check, random, size);
    checkSums(check, random, size);
    checkMixture(check, random, size);
  }
  for (int size : kWideNorms) checkNorms(check, random, size);
  for (int size : kWideActivations) checkActivations(check, random, size);
  checkConversions(check, DType::kFloat16);
  checkConversions(check, DType::kBfloat16);
}

}  // namespace glm_relay::cuda
