// exp, log, sin and cos in float64, for the few values that are computed once per row (rotation
// angles, the logarithm of a softmax sum). libm is not used: its results differ between versions.
// Errors stay below 1e-15 relative (exp, log) or absolute (sin, cos); callers round to float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace glm_relay {

// x * 2^n for results in the normal range.
inline double timesPowerOfTwo(double x, int n) {
  const uint64_t bits = static_cast<uint64_t>(n + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, 8);
  return x * power;
}

// exp(x), |x| < 700: Taylor series up to r^13 / 13! on |r| <= ln 2 / 2.
inline double canonExp64(double x) {
  const double n = std::nearbyint(x * 1.4426950408889634);
  double r = std::fma(n, -0.693147180369123816490, x);
  r = std::fma(n, -1.90821492927058770002e-10, r);
  double p = 1.0;
  for (int i = 13; i >= 1; i--) p = std::fma(p, r / i, 1.0);
  return timesPowerOfTwo(p, static_cast<int>(n));
}

// log(x) for finite x >= 2^-1022: x = 2^e m with m in [sqrt(1/2), sqrt(2)), then
// log m = 2 atanh(s), s = (m - 1) / (m + 1), as a series up to s^23.
inline double canonLog64(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  int e = static_cast<int>(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
  double m;
  std::memcpy(&m, &bits, 8);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    e += 1;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double p = 0.0;
  for (int i = 23; i >= 3; i -= 2) p = std::fma(p, s2, 1.0 / i);
  const double logM = std::fma(2.0 * s * s2, p, 2.0 * s);
  return std::fma(e, 0.693147180369123816490, std::fma(e, 1.90821492927058770002e-10, logM));
}

struct SinCos64 {
  double sin;
  double cos;
};

// sin and cos of 0 <= x < 2^22: x minus a multiple of pi / 2 in two parts, then Taylor series.
inline SinCos64 canonSinCos64(double x) {
  const double n = std::nearbyint(x * 0.63661977236758134308);
  double r = std::fma(n, -1.57079632679489655800, x);
  r = std::fma(n, -6.12323399573676603587e-17, r);
  const double r2 = r * r;
  double s = 1.0;
  for (int i = 20; i >= 2; i -= 2) s = std::fma(s, -r2 / (i * (i + 1)), 1.0);
  s *= r;
  double c = 1.0;
  for (int i = 19; i >= 1; i -= 2) c = std::fma(c, -r2 / (i * (i + 1)), 1.0);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      return {s, c};
    case 1:
      return {c, -s};
    case 2:
      return {-s, -c};
    default:
      return {-c, s};
  }
}

}  // namespace glm_relay
