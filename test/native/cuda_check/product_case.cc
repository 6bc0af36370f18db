#include "product_case.h"

#include <atomic>
#include <cmath>

#include "cuda/kernels/rows.h"
#include "kernels/half.h"
#include "quant/quantize.h"

namespace glm_relay::cuda {

namespace {

uint8_t byteOf(uint32_t bits, int i) { return static_cast<uint8_t>(bits >> (8 * i)); }

// What a strip of the CPU's format says a weight is (quant/format.h).
double weightOf(const uint8_t* strip, const QuantLayout& layout, const WeightFormat& format, int row,
                int column) {
  const int tile = column / kTileColumns;
  const int quad = column % kTileColumns / kQuad;
  const uint8_t* bytes = strip + layout.tileOffset(tile);
  const auto* scales =
      reinterpret_cast<const StripScales*>(strip + layout.scalesOffset(tile / layout.tilesPerGroup));
  const double scale = halfToFloat(scales->half[row]);
  if (format.type == WeightType::kInt8) {
    return reinterpret_cast<const Int8Tile*>(bytes)->values[row / 8][quad][row % 8][column % kQuad] * scale;
  }
  const int both = reinterpret_cast<const Int4Tile*>(bytes)->values[row / 16][quad][row % 8][column % kQuad];
  return ((row % 16 < 8 ? both & 15 : both >> 4) - 8) * scale;
}

}  // namespace

ProductCase::ProductCase(int rowCount, int rowsOfWeights, int columns, WeightFormat weightFormat, DType dtype,
                         bool hostile, uint64_t seed)
    : rows(rowCount), n(rowsOfWeights), k(columns), format(weightFormat), layout_(n, k, format) {
  Random random(seed);
  x = random.values(static_cast<size_t>(rows) * k, 4.0f);
  std::vector<float> stored = random.values(static_cast<size_t>(n) * k, 0.05f);
  bias_ = random.values(n);
  if (hostile) {
    const float sizes[] = {1e-9f, 3e4f, 1e12f, 1e-30f, 0.0f};
    for (int row = 0; row < rows; row++) {
      for (int i = 0; i < k; i++) x[static_cast<size_t>(row) * k + i] *= sizes[row % 5];
      if (row % 5 != 4) x[static_cast<size_t>(row) * k + random.below(k)] *= 500.0f;
    }
    const float rowSizes[] = {1e-4f, 1.0f, 1e4f, 0.0f};
    for (int row = 0; row < n; row++) {
      for (int i = 0; i < k; i++) stored[static_cast<size_t>(row) * k + i] *= rowSizes[row % 4];
      if (row % 3 == 0) stored[static_cast<size_t>(row) * k + random.below(k)] *= 30.0f;
      bias_[row] = 0.0f;
    }
  }

  std::vector<uint8_t> bytes;
  for (float& value : stored) {
    if (dtype == DType::kFloat16) value = halfToFloat(floatToHalf(value));
    if (dtype == DType::kBfloat16) value = bfloatToFloat(floatToBfloat(value));
    const uint32_t bits = dtype == DType::kFloat32   ? floatBits(value)
                          : dtype == DType::kFloat16 ? floatToHalf(value)
                                                     : floatToBfloat(value);
    for (size_t i = 0; i < dtypeBytes(dtype); i++) bytes.push_back(byteOf(bits, static_cast<int>(i)));
  }
  const HostMatrix matrix = {{{bytes.data(), n, k}}, false, dtype, n, k, format, nullptr};
  weights.assign(stored.begin(), stored.end());
  if (format.type != WeightType::kStored) {
    const QuantLayout layout(n, k, format);
    StripQuantizer quantizer(matrix, kScalarKernels);
    for (int strip = 0; strip < layout.strips; strip++) {
      std::vector<uint8_t> out(layout.stripBytes());
      quantizer.quantize(out.data(), strip);
      for (int row = strip * 32; row < std::min(n, strip * 32 + 32); row++) {
        for (int i = 0; i < k; i++) {
          weights[static_cast<size_t>(row) * k + i] = weightOf(out.data(), layout, format, row % 32, i);
        }
      }
    }
  }
  for (int row = 0; row < rows; row++) {
    for (int column = 0; column < n; column++) {
      double sum = bias_[column];
      for (int i = 0; i < k; i++) {
        sum += static_cast<double>(x[static_cast<size_t>(row) * k + i]) *
               weights[static_cast<size_t>(column) * k + i];
      }
      expected.push_back(sum);
    }
  }

  std::atomic<uint64_t> progress{0};
  ThreadPool pool(1, progress);
  const PackedWeights packed = packMatrix(matrix, kScalarKernels, pool);
  blocks_ = std::make_unique<OnDevice<uint8_t>>(packed.blocks);
  rowScales_ = std::make_unique<OnDevice<float>>(packed.rowScales);
  biasOnDevice_ = std::make_unique<OnDevice<float>>(bias_);
}

ProductArgs ProductCase::args() const {
  ProductArgs args = {};
  args.weights = blocks_->get();
  args.rowScales = rowScales_->get();
  args.n = n;
  args.rowBlocks = layout_.rowBlocks;
  args.columnBlocks = layout_.columnBlocks;
  args.groupsPerBlock = layout_.groupsPerBlock;
  args.blockBytes = layout_.blockBytes;
  return args;
}

std::vector<float> ProductCase::run(Path path, std::optional<ProductKernel> kernel, int first,
                                    int count) const {
  const std::vector<float> part(x.begin() + static_cast<int64_t>(first) * k,
                                x.begin() + static_cast<int64_t>(first + count) * k);
  const OnDevice<float> in(part), y(static_cast<size_t>(count) * n), scales(static_cast<size_t>(count));
  const OnDevice<uint16_t> halves(static_cast<size_t>(halvesOf(count, layout_.paddedColumns())));
  halveRows(stream(), {halves.get(), scales.get(), layout_.paddedColumns()}, in.get(), count, k);
  ProductArgs product = args();
  product.y = y.get();
  product.x = halves.get();
  product.xScales = scales.get();
  product.bias = biasOnDevice_->get();
  product.rows = count;
  if (kernel) {
    productWith(stream(), path, format.type, *kernel, product);
  } else {
    cuda::product(stream(), path, format.type, product);
  }
  return y.read();
}

std::string ProductCase::name() const {
  const char* types[] = {"stored", "int8", "int4"};
  return std::string(types[static_cast<int>(format.type)]) + " in groups of " +
         std::to_string(format.groupSize) + ", " + std::to_string(rows) + " rows, [" + std::to_string(n) +
         ", " + std::to_string(k) + "]";
}

}  // namespace glm_relay::cuda
