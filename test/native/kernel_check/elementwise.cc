// Row kernels at every size around 8 and 16, and conversions at every value that matters.
#include <cmath>
#include <limits>

#include "check.h"
#include "kernels/half.h"

namespace glm_relay {

namespace {

// A few values that break careless code.
std::vector<float> withExtremes(std::vector<float> values) {
  const float extremes[] = {0.0f, -0.0f, 88.0f, -88.0f, 104.0f, -104.0f, 1e-40f, -1e-40f, 3e38f, -3e38f};
  for (size_t i = 0; i < values.size(); i += 7) values[i] = extremes[(i / 7) % 10];
  return values;
}

void checkRowKernels(const KernelTable& variant, int size, Random& random, Check& check) {
  const std::string of = " size " + std::to_string(size);
  const std::vector<float> x = random.values(size);
  const std::vector<float> weight = random.values(size);
  std::vector<float> expected(size);
  std::vector<float> got(size);
  kScalarKernels.rmsNorm(expected.data(), x.data(), weight.data(), size, 1e-5f);
  variant.rmsNorm(got.data(), x.data(), weight.data(), size, 1e-5f);
  check.equal(got, expected, "rmsNorm" + of);

  const std::vector<float> gateUp = withExtremes(random.values(2 * static_cast<size_t>(size)));
  kScalarKernels.gatedSilu(expected.data(), gateUp.data(), size);
  variant.gatedSilu(got.data(), gateUp.data(), size);
  check.equal(got, expected, "gatedSilu" + of);

  expected = x;
  got = x;
  kScalarKernels.add(expected.data(), weight.data(), size);
  variant.add(got.data(), weight.data(), size);
  check.equal(got, expected, "add" + of);

  const std::vector<float> bias = random.values(size);
  kScalarKernels.layerNorm(expected.data(), x.data(), weight.data(), bias.data(), size, 1e-5f);
  variant.layerNorm(got.data(), x.data(), weight.data(), bias.data(), size, 1e-5f);
  check.equal(got, expected, "layerNorm" + of);

  kScalarKernels.gelu(expected.data(), gateUp.data(), size);
  variant.gelu(got.data(), gateUp.data(), size);
  check.equal(got, expected, "gelu" + of);
  kScalarKernels.gatedGelu(expected.data(), gateUp.data(), size);
  variant.gatedGelu(got.data(), gateUp.data(), size);
  check.equal(got, expected, "gatedGelu" + of);

  kScalarKernels.scaleAdd(expected.data(), x.data(), 1.7f, weight.data(), size);
  variant.scaleAdd(got.data(), x.data(), 1.7f, weight.data(), size);
  check.equal(got, expected, "scaleAdd" + of);

  for (int ropeDim = 0; ropeDim <= size && ropeDim <= 64; ropeDim += 2) {
    std::vector<float> cosSin = random.values(ropeDim);
    cosSin.push_back(0.0f);
    expected = x;
    got = x;
    kScalarKernels.rotate(expected.data(), cosSin.data(), ropeDim);
    variant.rotate(got.data(), cosSin.data(), ropeDim);
    check.equal(got, expected, "rotate " + std::to_string(ropeDim) + of);
    expected = x;
    got = x;
    kScalarKernels.rotateHalves(expected.data(), cosSin.data(), ropeDim);
    variant.rotateHalves(got.data(), cosSin.data(), ropeDim);
    check.equal(got, expected, "rotateHalves " + std::to_string(ropeDim) + of);
  }

  const std::vector<float> logits = withExtremes(random.values(size));
  float max = -std::numeric_limits<float>::infinity();
  for (const float logit : logits) max = std::max(max, logit);
  kScalarKernels.expWeights(expected.data(), logits.data(), size, max, 0.7f);
  variant.expWeights(got.data(), logits.data(), size, max, 0.7f);
  check.equal(got, expected, "expWeights" + of);
  check.equal({variant.expSum(logits.data(), size, max)}, {kScalarKernels.expSum(logits.data(), size, max)},
              "expSum" + of);
}

// Compares widen, narrow and round of the variant on the same values.
void checkType(const KernelTable& variant, DType dtype, const std::vector<float>& values,
               const std::string& what, Check& check) {
  const int type = static_cast<int>(dtype);
  const int64_t count = static_cast<int64_t>(values.size());
  std::vector<uint8_t> expected(values.size() * dtypeBytes(dtype) + 1);
  std::vector<uint8_t> got(expected.size());
  kScalarKernels.narrow[type](expected.data() + 1, values.data(), count);
  variant.narrow[type](got.data() + 1, values.data(), count);
  check.that(got == expected, [&] { return "narrow " + what; });

  std::vector<float> expectedWide(values.size());
  std::vector<float> gotWide(values.size());
  kScalarKernels.widen[type](expectedWide.data(), expected.data() + 1, count);
  variant.widen[type](gotWide.data(), expected.data() + 1, count);
  check.equal(gotWide, expectedWide, "widen " + what);
  std::vector<float> rounded = values;
  variant.round[type](rounded.data(), count);
  check.equal(rounded, expectedWide, "round " + what);
}

// The nearest neighbour among all halves, found by search: independent of any bit trick.
void checkHalfRounding(Check& check) {
  const auto half = [](uint32_t bits) {
    return static_cast<double>(halfToFloat(static_cast<uint16_t>(bits)));
  };
  for (uint32_t bits = 0; bits + 1 < 0x7c00; bits++) {
    const double low = half(bits);
    const double high = half(bits + 1);
    const float middle = static_cast<float>((low + high) / 2);
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    const auto expect = [&](float x, uint32_t expected) {
      check.that(floatToHalf(x) == expected, [&] { return "floatToHalf near " + std::to_string(low); });
      check.that(floatToHalf(-x) == (expected | 0x8000u),
                 [&] { return "floatToHalf near -" + std::to_string(low); });
    };
    expect(static_cast<float>(low), bits);
    expect(middle, even);
    expect(std::nextafterf(middle, 0.0f), bits);
    expect(std::nextafterf(middle, 1e9f), bits + 1);
  }
  check.that(floatToHalf(65519.99f) == 0x7bff, [] { return std::string("largest half"); });
  check.that(floatToHalf(65520.0f) == 0x7c00, [] { return std::string("overflow to infinity"); });
}

}  // namespace

void checkElementwise(const KernelTable& variant, Check& check) {
  Random random(3);
  for (int size = 1; size <= 70; size++) checkRowKernels(variant, size, random, check);
  for (const int size : {96, 127, 128, 130, 1000, 4096}) checkRowKernels(variant, size, random, check);
}

void checkConversions(const KernelTable& variant, Check& check) {
  // All 65536 patterns of both two-byte types, NaNs included.
  for (const DType dtype : {DType::kFloat16, DType::kBfloat16}) {
    std::vector<uint16_t> patterns(65536);
    for (size_t i = 0; i < patterns.size(); i++) patterns[i] = static_cast<uint16_t>(i);
    std::vector<float> expected(patterns.size());
    std::vector<float> got(patterns.size());
    kScalarKernels.widen[static_cast<int>(dtype)](expected.data(), patterns.data(), 65536);
    variant.widen[static_cast<int>(dtype)](got.data(), patterns.data(), 65536);
    check.equal(got, expected, "widen of all patterns, dtype " + std::to_string(static_cast<int>(dtype)));
  }

  // Halfway cases, their neighbours, subnormals, infinities and NaNs with every kind of payload.
  Random random(4);
  std::vector<float> values;
  for (uint32_t high = 0; high < 65536; high += 3) {
    for (const uint32_t low :
         {0x0000u, 0x0001u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      values.push_back(bitsFloat(high << 16 | low));
    }
  }
  for (int i = 0; i < 200000; i++) values.push_back(bitsFloat(static_cast<uint32_t>(random.next())));
  for (const DType dtype : {DType::kFloat16, DType::kBfloat16}) {
    checkType(variant, dtype, values, "edge cases, dtype " + std::to_string(static_cast<int>(dtype)), check);
  }
  for (const DType dtype : kAllDTypes) {
    for (int size = 1; size <= 40; size++) {
      checkType(variant, dtype, random.values(size), "size " + std::to_string(size), check);
    }
  }
  checkHalfRounding(check);
}

}  // namespace glm_relay
