#include "cuda/kernels/device.h"
#include "cuda/kernels/product.h"

namespace glm_relay::cuda {

namespace {

void start(cudaStream_t stream, Path path, WeightType type, ProductKernel kernel, const ProductArgs& args,
           const GroupedRows* grouped) {
  switch (kernel) {
    case ProductKernel::kNarrow8:
    case ProductKernel::kNarrow16:
    case ProductKernel::kNarrow32:
      return narrowProduct(stream, path, type, rowsOf(kernel) / kTileRows, args, grouped);
    case ProductKernel::kWider64:
    case ProductKernel::kWiderFew:
    case ProductKernel::kWider:
      if (path == Path::kAmpere) {
        return widerProduct(stream, type, kernel, args);
      }
      [[fallthrough]];
    case ProductKernel::kWide:
      return wideProduct(stream, path, type, args, grouped);
  }
}

// With fewer columns parts are soon complete, and kWider brings their sums to memory too often.
constexpr int kWiderColumnBlocks = 64;
// Of threads, each with 128 outputs and 128 rows: fewer leave multiprocessors of a large GPU idle, that
// blocks of 64 rows would keep busy; so many give most of them two at a time.
constexpr int kBusyBlocks = 120;
constexpr int kManyBlocks = 200;

ProductKernel kernelFor(Path path, const ProductArgs& args) {
  for (ProductKernel kernel : {ProductKernel::kNarrow8, ProductKernel::kNarrow16, ProductKernel::kNarrow32}) {
    if (args.rows <= rowsOf(kernel)) return kernel;
  }
  if (path == Path::kTuring || args.rows <= rowsOf(ProductKernel::kWide)) return ProductKernel::kWide;
  constexpr int kRows = rowsOf(ProductKernel::kWider);
  constexpr int kRowBlocks = 128 / kBlockRows;
  const int64_t blocks = static_cast<int64_t>((args.rows + kRows - 1) / kRows) *
                         ((args.rowBlocks + kRowBlocks - 1) / kRowBlocks);
  if (blocks < kBusyBlocks) return ProductKernel::kWide;
  if (args.columnBlocks < kWiderColumnBlocks) return ProductKernel::kWider64;
  return blocks < kManyBlocks ? ProductKernel::kWiderFew : ProductKernel::kWider;
}

}  // namespace

void productWith(cudaStream_t stream, Path path, WeightType type, ProductKernel kernel,
                 const ProductArgs& args) {
  start(stream, path, type, kernel, args, nullptr);
}

void groupedProduct(cudaStream_t stream, Path path, WeightType type, ProductKernel kernel,
                    const ProductArgs& args, const GroupedRows& grouped) {
  start(stream, path, type, kernel, args, &grouped);
}

void prepareProducts(Path path) {
  prepareNarrowProducts(path);
  prepareWideProducts(path);
  if (path == Path::kAmpere) prepareWiderProducts();
}

void product(cudaStream_t stream, Path path, WeightType type, const ProductArgs& args) {
  productWith(stream, path, type, kernelFor(path, args), args);
}

}  // namespace glm_relay::cuda
