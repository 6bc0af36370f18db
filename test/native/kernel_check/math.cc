// The canon's own functions against libm in float64, and the random numbers against published vectors.
// The bounds are about twice what was measured.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "check.h"
#include "kernels/canon_double.h"
#include "kernels/canon_math.h"
#include "model/philox.h"

namespace glm_relay {

namespace {

std::string number(double x) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.17g", x);
  return text;
}

void within(Check& check, const char* name, double x, double got, double expected, double bound) {
  check.that(std::abs(got - expected) <= bound, [&] {
    return std::string(name) + "(" + number(x) + ") = " + number(got) + ", expected " + number(expected);
  });
}

// exp of the variant, through the kernel that is nothing else.
float expOf(const KernelTable& variant, float x) {
  float lanes[8];
  float inputs[8];
  std::fill(inputs, inputs + 8, x);
  variant.expWeights(lanes, inputs, 8, 0.0f, 1.0f);
  return lanes[5];
}

void checkExp(const KernelTable& variant, Check& check) {
  for (int i = 0; i <= 400000; i++) {
    const float x = -104.0f + 192.7f * static_cast<float>(i) / 400000.0f;
    const double expected = std::exp(static_cast<double>(x));
    // One and a half units in the last place, or of the smallest subnormal.
    const double bound = std::max(1.5 * expected * 0x1p-23, 0x1p-149);
    within(check, "exp", x, expOf(variant, x), expected, bound);
  }
  const float infinity = std::numeric_limits<float>::infinity();
  check.that(expOf(variant, 0.0f) == 1.0f, [] { return std::string("exp(0)"); });
  check.that(expOf(variant, -0.0f) == 1.0f, [] { return std::string("exp(-0)"); });
  check.that(expOf(variant, -infinity) == 0.0f, [] { return std::string("exp(-inf)"); });
  check.that(expOf(variant, infinity) == infinity, [] { return std::string("exp(inf)"); });
  check.that(expOf(variant, 200.0f) == infinity, [] { return std::string("exp(200)"); });
  check.that(std::isnan(expOf(variant, std::nanf(""))), [] { return std::string("exp(NaN)"); });
}

void checkSilu(const KernelTable& variant, Check& check) {
  for (int i = 0; i <= 200000; i++) {
    const float x = -100.0f + 200.0f * static_cast<float>(i) / 200000.0f;
    float gateUp[16];
    float y[8];
    std::fill(gateUp, gateUp + 8, x);
    std::fill(gateUp + 8, gateUp + 16, 1.0f);
    variant.gatedSilu(y, gateUp, 8);
    const double expected = x / (1.0 + std::exp(-static_cast<double>(x)));
    // Below -88 the denominator overflows and the result is -0 instead of about -1e-36.
    within(check, "silu", x, y[3], expected, std::max(3.0 * std::abs(expected) * 0x1p-23, 1e-36));
  }
}

void checkGelu(const KernelTable& variant, Check& check) {
  for (int i = 0; i <= 200000; i++) {
    const float x = -20.0f + 40.0f * static_cast<float>(i) / 200000.0f;
    float in[16];
    float y[8];
    std::fill(in, in + 8, 1.0f);
    std::fill(in + 8, in + 16, x);
    const double wide = x;
    variant.gelu(y, in + 8, 8);
    const double u = std::sqrt(2.0 / M_PI) * wide * (1.0 + 0.044715 * wide * wide);
    within(check, "gelu", x, y[3], 0.5 * wide * (1.0 + std::tanh(u)), 4e-7 * std::max(1.0, std::abs(wide)));
    variant.gatedGelu(y, in, 8);
    within(check, "gatedGelu", x, y[3], 0.5 * wide * std::erfc(-wide / std::sqrt(2.0)),
           2e-7 * std::max(1.0, std::abs(wide)));
  }
}

void checkDoubles(Check& check) {
  Random random(5);
  for (int i = 0; i < 200000; i++) {
    const double unit = static_cast<double>(random.next() >> 11) * 0x1p-53;
    const double scaled = std::ldexp(1.0 + unit, random.below(600) - 300);
    within(check, "log", scaled, canonLog64(scaled), std::log(scaled),
           4e-16 * std::max(1.0, std::abs(std::log(scaled))));
    const double exponent = 200.0 * (unit - 0.5);
    within(check, "exp64", exponent, canonExp64(exponent), std::exp(exponent), 1e-15 * std::exp(exponent));
    const double angle = unit * 2097152.0;
    within(check, "sin", angle, canonSinCos64(angle).sin, std::sin(angle), 1e-15);
    within(check, "cos", angle, canonSinCos64(angle).cos, std::cos(angle), 1e-15);
  }
  check.that(canonLog64(1.0) == 0.0, [] { return std::string("log(1)"); });
  check.that(canonExp64(0.0) == 1.0, [] { return std::string("exp64(0)"); });
  check.that(canonSinCos64(0.0).cos == 1.0, [] { return std::string("cos(0)"); });
}

}  // namespace

void checkMath(const KernelTable& variant, Check& check) {
  checkExp(variant, check);
  checkSilu(variant, check);
  checkGelu(variant, check);
  checkDoubles(check);
}

// Known answers of Random123 (kat_vectors: philox4x32 10).
void checkPhilox(const KernelTable&, Check& check) {
  using Words = std::array<uint32_t, 4>;
  const uint32_t ones = 0xffffffffu;
  check.that(philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
             [] { return std::string("philox of zeros"); });
  check.that(philox4x32({ones, ones, ones, ones}, {ones, ones}) ==
                 Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
             [] { return std::string("philox of ones"); });
  check.that(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
                 Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
             [] { return std::string("philox of the digits of pi"); });
  for (uint64_t position = 0; position < 10000; position++) {
    const double u = uniformAt(42, position);
    check.that(u >= 0.0 && u < 1.0, [] { return std::string("uniform number out of [0, 1)"); });
  }
  check.that(uniformAt(0, 0) == static_cast<double>((0xe169c58d6627e8d5ull) >> 11) * 0x1p-53,
             [] { return std::string("words of the uniform number"); });
}

}  // namespace glm_relay
