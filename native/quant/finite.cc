#include "quant/finite.h"

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/half.h"

namespace glm_relay {

namespace {

// All exponents are looked at without a branch; the place is only searched when needed.
template <class Bits>
bool allFinite(const uint8_t* stored, int64_t count, Bits exponent) {
  Bits found = 0;
  for (int64_t i = 0; i < count; i++) {
    Bits bits;
    std::memcpy(&bits, stored + i * sizeof(Bits), sizeof(Bits));
    found |= static_cast<Bits>((bits & exponent) == exponent);
  }
  return found == 0;
}

bool allFinite(const uint8_t* stored, DType dtype, int64_t count) {
  if (dtype == DType::kFloat32) return allFinite<uint32_t>(stored, count, 0x7f800000u);
  return allFinite<uint16_t>(stored, count, dtype == DType::kFloat16 ? 0x7c00u : 0x7f80u);
}

float valueAt(const uint8_t* stored, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) return Stored<DType::kFloat32>::load(stored, i);
  if (dtype == DType::kFloat16) return Stored<DType::kFloat16>::load(stored, i);
  return Stored<DType::kBfloat16>::load(stored, i);
}

}  // namespace

void requireFinite(const uint8_t* stored, DType dtype, int64_t count, int64_t row, int64_t columns) {
  if (allFinite(stored, dtype, count)) return;
  int64_t i = 0;
  while (std::isfinite(valueAt(stored, dtype, i))) i++;
  const char* value = std::isnan(valueAt(stored, dtype, i)) ? "NaN" : "infinite";
  const std::string place =
      "row " + std::to_string(row + i / columns) + ", column " + std::to_string(i % columns);
  throw WeightError("the value in " + place + " is " + value + ", expected finite weights");
}

}  // namespace glm_relay
