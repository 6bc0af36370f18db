#include <cmath>
#include <limits>

#include "product_case.h"

namespace glm_relay::cuda {

namespace {

constexpr double kBound = 2e-3;

const WeightFormat kFormats[] = {
    {WeightType::kStored, 0, ScaleChoice::kAbsMax}, {WeightType::kInt8, 32, ScaleChoice::kAbsMax},
    {WeightType::kInt8, 128, ScaleChoice::kAbsMax}, {WeightType::kInt8, 0, ScaleChoice::kAbsMax},
    {WeightType::kInt4, 32, ScaleChoice::kSearch},  {WeightType::kInt4, 64, ScaleChoice::kAbsMax},
    {WeightType::kInt4, 128, ScaleChoice::kAbsMax}, {WeightType::kInt4, 0, ScaleChoice::kAbsMax},
};

struct Shape {
  int rows;
  int n;
  int k;
};
// Around the borders of tiles: 16, 32, 64 and 128 rows, 8 to 128 columns, 128 values of k and 1 to 4 parts of
// them; {2, 12, 2700} has parts of several blocks, more than are held at a time, and the last one whole
// tiles.
const Shape kShapes[] = {{1, 8, 16},    {3, 37, 128},  {17, 40, 300},
                         {35, 132, 97}, {70, 70, 416}, {2, 12, 2700}};
// Of the kernel for the most rows; by emulation it takes as long as all others.
const Shape kWholeTiles = {130, 132, 260};

std::vector<float> rowsOf(const std::vector<float>& y, int n, int first, int count) {
  return {y.begin() + static_cast<int64_t>(first) * n, y.begin() + static_cast<int64_t>(first + count) * n};
}

// Rows of very different sizes are compared one by one, or the largest would hide the others.
void nearByRow(Check& check, const ProductCase& product, const std::vector<float>& got,
               const std::string& what) {
  for (int row = 0; row < product.rows; row++) {
    const std::vector<double> expected(product.expected.begin() + static_cast<int64_t>(row) * product.n,
                                       product.expected.begin() + static_cast<int64_t>(row + 1) * product.n);
    const std::vector<float> part = rowsOf(got, product.n, row, 1);
    bool zero = true;
    for (double value : expected) zero = zero && value == 0.0;
    if (zero) {
      check.equal(part, std::vector<float>(part.size(), 0.0f), what + ", zeros");
    } else {
      check.near(part, expected, kBound, what + ", row " + std::to_string(row));
    }
  }
}

void checkShape(Check& check, Path path, const ProductCase& product) {
  const std::string what = std::string(nameOf(path)) + " product, " + product.name();
  const std::vector<float> got = product.run(path, {}, 0, product.rows);
  nearByRow(check, product, got, what);
  for (ProductKernel kernel : kProductKernels) {
    check.equal(product.run(path, kernel, 0, product.rows), got, what + ", another kernel");
  }
  const int middle = product.rows / 2;
  check.equal(product.run(path, {}, middle, 1), rowsOf(got, product.n, middle, 1), what + ", one row alone");
}

// A row that is not finite stays so, and its neighbours do not care.
void checkNotFinite(Check& check, Path path) {
  ProductCase product(3, 16, 64, kFormats[4], DType::kFloat32, false, 5);
  const std::vector<float> good = product.run(path, {}, 0, 3);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    product.x[64 + 7] = bad;
    const std::vector<float> got = product.run(path, {}, 0, 3);
    for (int i = 0; i < 16; i++) {
      check.that(!std::isfinite(got[16 + i]),
                 [] { return std::string("a row with NaN or infinity gives numbers"); });
    }
    check.equal(rowsOf(got, 16, 0, 1), rowsOf(good, 16, 0, 1), "the row in front of one that is not finite");
    check.equal(rowsOf(got, 16, 2, 1), rowsOf(good, 16, 2, 1), "the row behind one that is not finite");
  }
}

}  // namespace

void checkProducts(Check& check) {
  for (Path path : kPaths) {
    prepareProducts(path);
    uint64_t seed = 1;
    for (const WeightFormat& format : kFormats) {
      for (const Shape& shape : kShapes) {
        const DType dtype = static_cast<DType>(seed % kDTypeCount);
        checkShape(check, path, ProductCase(shape.rows, shape.n, shape.k, format, dtype, false, seed));
        seed++;
      }
      checkShape(check, path, ProductCase(6, 24, 160, format, DType::kFloat32, true, seed));
      if (path == Path::kAmpere && format.groupSize <= 32) {
        const Shape& shape = kWholeTiles;
        checkShape(check, path,
                   ProductCase(shape.rows, shape.n, shape.k, format, DType::kFloat16, false, seed));
      }
    }
    checkShape(check, path, ProductCase(6, 24, 160, kFormats[0], DType::kBfloat16, true, seed));
    checkNotFinite(check, path);
  }
}

}  // namespace glm_relay::cuda
