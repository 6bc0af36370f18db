// Matrix products around every tile edge: strips of 32, halves of 16, 6 rows, 48 rows, K chunks of 256.
#include "check.h"
#include "cpu/packed_matrix.h"

namespace glm_relay {

namespace {

struct Shape {
  int n;
  int k;
};

void checkShape(const KernelTable& variant, Shape shape, int rows, DType dtype, Random& random,
                Check& check) {
  std::atomic<uint64_t> progress{0};
  ThreadPool pool(1, progress);
  const size_t weightCount = static_cast<size_t>(shape.n) * shape.k;
  // One byte off, as a tensor of a file may lie.
  std::vector<uint8_t> stored(weightCount * dtypeBytes(dtype) + 1);
  kScalarKernels.narrow[static_cast<int>(dtype)](stored.data() + 1, random.values(weightCount).data(),
                                                 static_cast<int64_t>(weightCount));
  const PackedMatrix matrix({{{stored.data() + 1, shape.n, shape.k}}, false, dtype, shape.n, shape.k, {}, {}},
                            pool);
  const std::vector<float> x = random.values(static_cast<size_t>(rows) * shape.k);
  const std::vector<float> bias = random.values(shape.n);
  const size_t count = static_cast<size_t>(rows) * shape.n;
  std::vector<float> expected(count, -7.0f);
  std::vector<float> got(count, -7.0f);

  MatmulArgs args = {};
  args.x = x.data();
  args.packed = matrix.data();
  args.bias = random.below(2) == 0 ? nullptr : bias.data();
  args.rows = rows;
  args.n = shape.n;
  args.k = shape.k;
  // Often only a part of the strips: the columns outside it must stay as they are.
  args.stripBegin = random.below(matrix.strips());
  args.stripEnd = args.stripBegin + 1 + random.below(matrix.strips() - args.stripBegin);
  args.y = expected.data();
  kScalarKernels.matmul[static_cast<int>(dtype)](args);
  args.y = got.data();
  variant.matmul[static_cast<int>(dtype)](args);
  check.equal(got, expected,
              "matmul rows " + std::to_string(rows) + " n " + std::to_string(shape.n) + " k " +
                  std::to_string(shape.k) + " dtype " + std::to_string(static_cast<int>(dtype)));
}

}  // namespace

void checkMatmul(const KernelTable& variant, Check& check) {
  Random random(1);
  const Shape shapes[] = {{1, 1},  {5, 32},   {32, 1},   {33, 7},   {31, 255}, {32, 256},
                          {64, 3}, {48, 257}, {65, 513}, {131, 64}, {16, 40},  {17, 2}};
  for (const DType dtype : kAllDTypes) {
    for (const Shape& shape : shapes) {
      for (int rows = 1; rows <= 70; rows++) checkShape(variant, shape, rows, dtype, random, check);
      for (const int rows : {96, 101, 512}) checkShape(variant, shape, rows, dtype, random, check);
    }
    for (int i = 0; i < 60; i++) {
      const Shape shape = {1 + random.below(150), 1 + random.below(600)};
      checkShape(variant, shape, 1 + random.below(60), dtype, random, check);
    }
  }
}

}  // namespace glm_relay
