// Rotary position embedding: angle of pair j at position p is (p / divisor) * base^(-2j / width), where
// width is the number of dimensions that turn with this position: all, or half where there are two axes,
// computed in float64 with our own sin and cos (canon_double.h) and rounded to float32 once.
#pragma once

#include <vector>

#include "model/plan.h"

namespace glm_relay {

class Rope {
 public:
  explicit Rope(const ModelShape& shape);
  // cosSin[2j] = cos, cosSin[2j + 1] = sin of pair j; of each axis in turn, ropeDim values in all.
  // `blockPosition` is that of the second axis.
  void rotation(float* cosSin, int position, int blockPosition) const;

 private:
  void rotateAxis(float* cosSin, int position) const;

  std::vector<double> frequencies_;  // of one axis
  int axes_;
  double positionDivisor_;
};

}  // namespace glm_relay
