// A product of random numbers, ready to be computed.
#pragma once

#include <memory>
#include <optional>

#include "check.h"
#include "cuda/kernels/product.h"
#include "cuda/pack_matrix.h"

namespace glm_relay::cuda {

struct ProductCase {
  // `hostile`: weights and activations of very different sizes, and rows of zeros.
  ProductCase(int rows, int n, int k, WeightFormat format, DType dtype, bool hostile, uint64_t seed);

  // The output of rows [first, first + count), by the kernel that is best for so many or by this one.
  std::vector<float> run(Path path, std::optional<ProductKernel> kernel, int first, int count) const;
  // The weights alone: no rows of x, no y, no bias.
  ProductArgs args() const;
  int paddedColumns() const { return layout_.paddedColumns(); }
  std::string name() const;

  const int rows;
  const int n;
  const int k;
  const WeightFormat format;
  std::vector<float> x;
  std::vector<double> weights;   // [n, k], as they are after rounding
  std::vector<double> expected;  // [rows, n]

 private:
  WeightLayout layout_;
  std::vector<float> bias_;
  std::unique_ptr<OnDevice<uint8_t>> blocks_;
  std::unique_ptr<OnDevice<float>> rowScales_;
  std::unique_ptr<OnDevice<float>> biasOnDevice_;
};

}  // namespace glm_relay::cuda
