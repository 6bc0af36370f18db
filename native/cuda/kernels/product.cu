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
    case ProductKernel::kWide:
    case ProductKernel::kWider:
      if (path == Path::kAmpere && grouped == nullptr)
        return widerProduct(stream, type, rowsOf(kernel), args);
      return wideProduct(stream, path, type, args, grouped);
  }
}

// Of smaller matrices blocks of 64 rows are more to share out, and those of 128 bring sums of parts to memory
// too often.
constexpr int kWiderRowBlocks = 1024;
constexpr int kWiderColumnBlocks = 64;

ProductKernel kernelFor(const ProductArgs& args) {
  const bool isLarge = args.rowBlocks >= kWiderRowBlocks && args.columnBlocks >= kWiderColumnBlocks;
  const ProductKernel last = isLarge ? ProductKernel::kWider : ProductKernel::kWide;
  for (ProductKernel kernel : kProductKernels) {
    if (args.rows <= rowsOf(kernel) || kernel == last) return kernel;
  }
  return last;
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
  productWith(stream, path, type, kernelFor(args), args);
}

}  // namespace glm_relay::cuda
