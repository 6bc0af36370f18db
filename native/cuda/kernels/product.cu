#include "cuda/kernels/device.h"
#include "cuda/kernels/product.h"

namespace glm_relay::cuda {

void productWith(cudaStream_t stream, Path path, WeightType type, ProductKernel kernel,
                 const ProductArgs& args) {
  switch (kernel) {
    case ProductKernel::kNarrow16:
      return narrowProduct(stream, path, type, 1, args);
    case ProductKernel::kNarrow32:
      return narrowProduct(stream, path, type, 2, args);
    case ProductKernel::kWide:
      return wideProduct(stream, path, type, args);
  }
}

void product(cudaStream_t stream, Path path, WeightType type, const ProductArgs& args) {
  productWith(stream, path, type,
              args.rows <= kTileRows       ? ProductKernel::kNarrow16
              : args.rows <= 2 * kTileRows ? ProductKernel::kNarrow32
                                           : ProductKernel::kWide,
              args);
}

}  // namespace glm_relay::cuda
