// Rotary position embedding: angle of pair j at position p is (p / divisor) * base^(-2j / ropeDim),
// computed in float64 with our own sin and cos (canon_double.h) and rounded to float32 once.
#pragma once

#include <vector>

#include "model/plan.h"

namespace glm_relay {

class Rope {
 public:
  explicit Rope(const ModelShape& shape);
  // cosSin[2j] = cos, cosSin[2j + 1] = sin of pair j; ropeDim values.
  void rotation(float* cosSin, int position) const;

 private:
  std::vector<double> frequencies_;
  double positionDivisor_;
};

}  // namespace glm_relay
