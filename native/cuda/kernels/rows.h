// Operations whose result is the input of a product: one kernel gives it as float32 and, for the product, as
// FP16. A block of threads holds a row in registers.
#pragma once

#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

// As many columns as the registers of a block hold.
constexpr int kMaxRowColumns = 32768;
constexpr int kMaxNormColumns = 16384;
// Blocks of threads that share a row of an activation, at most.
constexpr int kRowShares = 32;

// Where a product's input goes: FP16 in the order of halfIndex() (weight_layout.h), each row times a power of
// two that brings its largest magnitude near the top of FP16's range, then zeros. scales[r] takes the power
// back; it is NaN for a row that is not finite.
struct HalfRows {
  uint16_t* halves;
  float* scales;
  int paddedColumns;
  // Rows that are nobody's, with a negative number here, are left as they are; null: there are none.
  const int32_t* owners = nullptr;
  // [rows, kRowShares]: room for activateRows to share wide rows among several blocks of threads; null: each
  // row has one.
  uint32_t* maxima = nullptr;
};

// x = base * scale + delta, [rows, size], in one rounding, then the nearest numbers of the type.
struct RowSum {
  float* x;
  const float* base;
  float scale;
  const float* delta;
  DType dtype;
};

enum class Activation : uint8_t { kGatedSilu, kGelu, kGatedGelu };

void sumRows(cudaStream_t stream, const RowSum& sum, int64_t count);
// Of rows x; with `sum`, not null, that is computed first, in the same kernel, and x is its.
void rmsNormRows(cudaStream_t stream, const HalfRows& to, float* y, const float* x, const RowSum* sum,
                 const float* weight, int rows, int size, float eps);
void layerNormRows(cudaStream_t stream, const HalfRows& to, float* y, const float* x, const RowSum* sum,
                   const float* weight, const float* bias, int rows, int size, float eps);
// y may be null: then there is FP16 alone.
void activateRows(cudaStream_t stream, const HalfRows& to, float* y, Activation activation, const float* x,
                  int rows, int size);
// FP16 alone.
void halveRows(cudaStream_t stream, const HalfRows& to, const float* x, int rows, int size);

}  // namespace glm_relay::cuda
