// Products of the weight matrices of whole models: few rows as a share of the copy bandwidth, many as a share
// of the matrix instructions' peak.
#include <cstdio>
#include <optional>

#include "cuda/kernels/product.h"
#include "measure.h"

namespace glm_relay::cuda {

namespace {

// So much memory is read in turn that no cache holds what is read again.
constexpr uint64_t kArenaBytes = 3ull << 29;

struct Matrix {
  const char* name;
  int n;
  int k;
};
const Matrix kMatrices[] = {
    {"GLM-130B query_key_value", 36864, 12288}, {"GLM-130B dense", 12288, 12288},
    {"GLM-130B dense_h_to_4h", 65536, 12288},   {"GLM-130B dense_4h_to_h", 12288, 32768},
    {"6B query_key_value", 4608, 4096},         {"6B, 9B dense", 4096, 4096},
    {"6B, 9B dense_h_to_4h", 27392, 4096},      {"6B, 9B dense_4h_to_h", 4096, 13696},
};
struct Format {
  const char* name;
  WeightFormat format;
};
const Format kFormats[] = {
    {"int4/32", {WeightType::kInt4, 32, ScaleChoice::kAbsMax}},
    {"int4/128", {WeightType::kInt4, 128, ScaleChoice::kAbsMax}},
    {"int8/128", {WeightType::kInt8, 128, ScaleChoice::kAbsMax}},
};
const int kFewRows[] = {1, 2, 4, 8, 16, 32, 64};
const int kManyRows[] = {128, 512};
// Those of many rows, each by itself.
const ProductKernel kWideKernels[] = {ProductKernel::kWide, ProductKernel::kWider};

}  // namespace

void benchProducts(const Limits& limits, Path path, bool quick) {
  prepareProducts(path);
  const RandomMemory arena(kArenaBytes);
  const RandomMemory x(halvesOf(512, 32768) * sizeof(uint16_t));
  const ZeroMemory y(512ull * 65536 * sizeof(float));
  const RandomMemory scales(65536 * sizeof(float));
  std::printf("\nproducts; few rows: share of the copy bandwidth; many: share of the matrix peak\n");
  std::printf("%-26s %-9s", "matrix", "weights");
  for (int rows : kFewRows) std::printf(" %6d", rows);
  for (int rows : kManyRows) std::printf(" %6d", rows);
  std::printf("   us at 1 and 512 rows; many by kernel: wide, wider\n");
  for (const Matrix& matrix : kMatrices) {
    for (const Format& format : kFormats) {
      if (quick && &format != kFormats) continue;
      const WeightLayout layout(matrix.n, matrix.k, format.format);
      const uint64_t bytes = (layout.bytes() + 255) / 256 * 256;
      const int copies = static_cast<int>(kArenaBytes / bytes);
      const auto time = [&](int rows, std::optional<ProductKernel> kernel = {}) {
        return microseconds([&](int call) {
          ProductArgs args = {};
          args.y = y.as<float>();
          args.x = reinterpret_cast<const uint16_t*>(x.get());
          args.xScales = reinterpret_cast<const float*>(scales.get());
          args.weights = arena.at(call % copies * bytes);
          args.rowScales = reinterpret_cast<const float*>(scales.get());
          args.rows = rows;
          args.n = matrix.n;
          args.rowBlocks = layout.rowBlocks;
          args.columnBlocks = layout.columnBlocks;
          args.groupsPerBlock = layout.groupsPerBlock;
          args.blockBytes = layout.blockBytes;
          if (kernel) {
            productWith(stream(), path, format.format.type, *kernel, args);
          } else {
            product(stream(), path, format.format.type, args);
          }
        });
      };
      std::printf("%-26s %-9s", matrix.name, format.name);
      double one = 0.0;
      double most = 0.0;
      for (int rows : kFewRows) {
        const double us = time(rows);
        if (rows == 1) one = us;
        std::printf(" %5.1f%%", 100.0 * layout.bytes() / (us * 1e-6) / limits.copyBytes);
      }
      const auto printMany = [&](int rows, double us) {
        const double operations = 2.0 * rows * matrix.n * matrix.k;
        std::printf(" %5.1f%%",
                    100.0 * operations / (us * 1e-6) / limits.matrixOperations[static_cast<int>(path)]);
      };
      for (int rows : kManyRows) {
        most = time(rows);
        printMany(rows, most);
      }
      std::printf("   %.1f %.1f", one, most);
      for (int rows : kManyRows) {
        std::printf("  ");
        for (ProductKernel kernel : kWideKernels) printMany(rows, time(rows, kernel));
      }
      std::printf("\n");
      std::fflush(stdout);
    }
  }
}

}  // namespace glm_relay::cuda
