// The functions of the canon, written once over "lanes": a variant supplies the lane type, and both
// do the same operations in the same order. In an unnamed namespace for the same reason as half.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/half.h"

namespace glm_relay {
namespace {

struct ScalarLanes {
  using Float = float;
  static inline Float set(float x) { return x; }
  static inline Float fma(Float a, Float b, Float c) { return std::fmaf(a, b, c); }
  static inline Float add(Float a, Float b) { return a + b; }
  static inline Float sub(Float a, Float b) { return a - b; }
  static inline Float mul(Float a, Float b) { return a * b; }
  static inline Float div(Float a, Float b) { return a / b; }
  // The second operand wins when either is NaN, as with maxps and minps.
  static inline Float larger(Float a, Float b) { return a > b ? a : b; }
  static inline Float smaller(Float a, Float b) { return a < b ? a : b; }
  // x * 2^n, n = the integer in the low bits of shifted = n + kExpShift. In two factors, so that
  // results below the normal range are rounded once and never flushed.
  static inline Float scale(Float x, Float shifted, uint32_t shiftBits) {
    const int32_t n = static_cast<int32_t>(floatBits(shifted) - shiftBits);
    const int32_t half = n >> 1;
    return x * bitsFloat(static_cast<uint32_t>(half + 127) << 23) *
           bitsFloat(static_cast<uint32_t>(n - half + 127) << 23);
  }
};

// exp(x) in float32: n = round(x / ln 2), r = x - n ln 2 in two parts, a polynomial of degree 7 in r
// (coefficients of Cephes' expf), times 2^n. exp(0) is exactly 1, exp(-inf) exactly 0, NaN stays NaN.
template <class L>
inline typename L::Float canonExp(typename L::Float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, to nearest even
  x = L::larger(L::set(-104.0f), x);
  x = L::smaller(L::set(89.0f), x);
  const auto shifted = L::fma(x, L::set(1.44269504f), L::set(kShift));
  const auto n = L::sub(shifted, L::set(kShift));
  auto r = L::fma(n, L::set(-0.693359375f), x);
  r = L::fma(n, L::set(2.12194440e-4f), r);
  auto p = L::set(1.9875691500e-4f);
  p = L::fma(p, r, L::set(1.3981999507e-3f));
  p = L::fma(p, r, L::set(8.3334519073e-3f));
  p = L::fma(p, r, L::set(4.1665795894e-2f));
  p = L::fma(p, r, L::set(1.6666665459e-1f));
  p = L::fma(p, r, L::set(5.0000001201e-1f));
  p = L::fma(p, L::mul(r, r), r);
  p = L::add(p, L::set(1.0f));
  return L::scale(p, shifted, 0x4b400000u);
}

// silu(x) = x / (1 + exp(-x))
template <class L>
inline typename L::Float canonSilu(typename L::Float x) {
  return L::div(x, L::add(L::set(1.0f), canonExp<L>(L::sub(L::set(0.0f), x))));
}

// gelu(x) by tanh, 0.5 x (1 + tanh(u)), is x / (1 + exp(-2u)); u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class L>
inline typename L::Float canonGeluTanh(typename L::Float x) {
  const auto inner = L::fma(L::mul(x, x), L::set(0.044715f), L::set(1.0f));
  const auto minusTwice = L::mul(L::mul(x, L::set(-1.59576912f)), inner);
  return L::div(x, L::add(L::set(1.0f), canonExp<L>(minusTwice)));
}

// gelu(x) by erf, x (1 + erf(x / sqrt 2)) / 2 = max(x, 0) - |x| erfc(z) / 2 with z = |x| / sqrt 2.
// erfc(z) = p(t) exp(-z^2), t = 1 / (1 + 0.4 z): a Chebyshev fit of degree 9 for z up to 10.5, within
// 3e-7 of p; beyond it exp is zero.
template <class L>
inline typename L::Float canonGeluErf(typename L::Float x) {
  const auto magnitude = L::larger(L::sub(L::set(0.0f), x), x);
  const auto z = L::mul(magnitude, L::set(0.707106781f));
  const auto t = L::div(L::set(1.0f), L::fma(z, L::set(0.4f), L::set(1.0f)));
  auto p = L::set(0.019213954f);
  p = L::fma(p, t, L::set(-0.0251745787f));
  p = L::fma(p, t, L::set(-0.175402164f));
  p = L::fma(p, t, L::set(0.417827487f));
  p = L::fma(p, t, L::set(-0.180546448f));
  p = L::fma(p, t, L::set(0.325249463f));
  p = L::fma(p, t, L::set(0.159110531f));
  p = L::fma(p, t, L::set(0.234997898f));
  p = L::fma(p, t, L::set(0.224678427f));
  p = L::fma(p, t, L::set(4.54397596e-5f));
  const auto tail = L::mul(p, canonExp<L>(L::mul(L::mul(x, x), L::set(-0.5f))));
  const auto half = L::mul(magnitude, L::set(0.5f));
  return L::sub(L::larger(x, L::set(0.0f)), L::mul(half, tail));
}

// 1 / (1 + exp(-x))
template <class L>
inline typename L::Float canonSigmoid(typename L::Float x) {
  return L::div(L::set(1.0f), L::add(L::set(1.0f), canonExp<L>(L::sub(L::set(0.0f), x))));
}

// Pairwise sum of 16 lanes: l + l+8, then +4, +2, +1.
inline float treeSum(const float lanes[kTreeLanes]) {
  float sums[kTreeLanes];
  for (int i = 0; i < kTreeLanes; i++) sums[i] = lanes[i];
  for (int width = kTreeLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) sums[i] = sums[i] + sums[i + width];
  }
  return sums[0];
}

}  // namespace
}  // namespace glm_relay
