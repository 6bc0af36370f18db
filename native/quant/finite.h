// Weights that are NaN or infinite are refused where they are read.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "kernels/kernels.h"

namespace glm_relay {

// Says what is wrong with a tensor's content; whoever knows the tensor's name adds it.
class WeightError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws WeightError naming the first of `count` stored values, which begin row `row` of a tensor with
// `columns` columns, that is NaN or infinite.
void requireFinite(const uint8_t* stored, DType dtype, int64_t count, int64_t row, int64_t columns);

}  // namespace glm_relay
