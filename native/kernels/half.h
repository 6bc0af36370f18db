// float16 and bfloat16 <-> float32, bit for bit as the F16C instructions do it: to nearest even,
// subnormals kept, NaNs made quiet. In an unnamed namespace, because files with different architecture
// flags include this: with one shared definition the linker could keep the copy that a plain CPU
// cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace glm_relay {
namespace {

inline uint32_t floatBits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float bitsFloat(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float halfToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31u;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 31) {
    return bitsFloat(sign | 0x7f800000u | (mantissa ? 0x400000u : 0u) | (mantissa << 13));
  }
  if (exponent == 0) {
    // A subnormal half is mantissa * 2^-24, exact in float32.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return bitsFloat(sign | floatBits(magnitude));
  }
  return bitsFloat(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

inline uint16_t floatToHalf(float x) {
  const uint32_t bits = floatBits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and above
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: adding 0.5 (ulp 2^-24) lets the hardware round.
    const float shifted = bitsFloat(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (floatBits(shifted) - 0x3f000000u));
  }
  // The carry out of the mantissa runs into the exponent, up to infinity.
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

inline float bfloatToFloat(uint16_t b) { return bitsFloat(static_cast<uint32_t>(b) << 16); }

inline uint16_t floatToBfloat(float x) {
  const uint32_t bits = floatBits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A storage type as the kernels' templates see it. Loads and stores need no alignment.
template <DType Type>
struct Stored;

template <>
struct Stored<DType::kFloat32> {
  static constexpr size_t kBytes = 4;
  static inline float load(const void* base, int64_t i) {
    float x;
    std::memcpy(&x, static_cast<const uint8_t*>(base) + i * 4, 4);
    return x;
  }
  static inline void store(void* base, int64_t i, float x) {
    std::memcpy(static_cast<uint8_t*>(base) + i * 4, &x, 4);
  }
};

template <float (*Widen)(uint16_t), uint16_t (*Narrow)(float)>
struct StoredTwoBytes {
  static constexpr size_t kBytes = 2;
  static inline float load(const void* base, int64_t i) {
    uint16_t bits;
    std::memcpy(&bits, static_cast<const uint8_t*>(base) + i * 2, 2);
    return Widen(bits);
  }
  static inline void store(void* base, int64_t i, float x) {
    const uint16_t bits = Narrow(x);
    std::memcpy(static_cast<uint8_t*>(base) + i * 2, &bits, 2);
  }
};

template <>
struct Stored<DType::kFloat16> : StoredTwoBytes<halfToFloat, floatToHalf> {};
template <>
struct Stored<DType::kBfloat16> : StoredTwoBytes<bfloatToFloat, floatToBfloat> {};

}  // namespace
}  // namespace glm_relay
