// y[rows, n] = x[rows, k] * w[n, k]^T (+ bias), on tensor cores: x as FP16 with a power of two per row
// (HalfRows), w as it lies in weight_layout.h, sums in float32.
//
// An output is the sum of kParts sums along k, in order; each of them is made by one warp, 16 columns
// (kTuring: 8) per matrix instruction, ascending. So it does not depend on the kernel or the tile, and they
// may be chosen by the number of rows:
// - narrow, up to 32 rows: bound by the memory that holds the weights. Every part has its own warp, which
//   brings its weights through shared memory, some blocks ahead, and waits for nobody until the end.
// - wide, of 64 rows per block of threads: bound by the tensor cores. A block shares x in shared memory. For
//   kTuring and the rows of experts.
// - wider (kAmpere), of 64 or, for large matrices, 128 rows: weights are dequantized while those before them
// are
//   multiplied. Of 128 rows sums of parts meet in y, for which registers are too few.
#pragma once

#include "cuda/kernels/kernels.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

struct ProductArgs {
  float* y;
  const uint16_t* x;     // halvesOf(rows, layout.paddedColumns()) FP16 numbers, as halfIndex() says
  const float* xScales;  // [rows]
  const uint8_t* weights;
  const float* rowScales;  // [n]
  const float* bias;       // [n], or null
  int rows;
  int n;
  int rowBlocks;
  int columnBlocks;
  int groupsPerBlock;
  int blockBytes;
};

// Enqueues the product with the best kernel for so many rows.
void product(cudaStream_t stream, Path path, WeightType type, const ProductArgs& args);

enum class ProductKernel : uint8_t { kNarrow8, kNarrow16, kNarrow32, kWide, kWider };
constexpr ProductKernel kProductKernels[] = {ProductKernel::kNarrow8, ProductKernel::kNarrow16,
                                             ProductKernel::kNarrow32, ProductKernel::kWide,
                                             ProductKernel::kWider};
// Those that groupedProduct takes.
constexpr ProductKernel kGroupedKernels[] = {ProductKernel::kNarrow8, ProductKernel::kNarrow16,
                                             ProductKernel::kWide};
// The same with a kernel by name; for tests. On kTuring there is none for 128 rows: that for 64 takes its
// place.
void productWith(cudaStream_t stream, Path path, WeightType type, ProductKernel kernel,
                 const ProductArgs& args);

// The rows that one block of threads computes together: those of one expert, or no rows.
struct ExpertTile {
  int32_t expert;
  int32_t firstRow;  // a multiple of kTileRows
  int32_t rows;      // at most as many as the kernel's tile has
};
// The weights of an expert, in the layout that ProductArgs gives.
struct ExpertMatrix {
  const uint8_t* weights;
  const float* rowScales;
};
struct GroupedRows {
  const ExpertMatrix* matrices;  // [experts]
  const ExpertTile* tiles;       // [tileCount]
  int tileCount;
};
constexpr int rowsOf(ProductKernel kernel) {
  return kernel == ProductKernel::kNarrow8    ? 8
         : kernel == ProductKernel::kNarrow16 ? 16
         : kernel == ProductKernel::kNarrow32 ? 32
         : kernel == ProductKernel::kWide     ? 64
                                              : 128;
}

// The same for rows of many experts in one grid, bit by bit what `product` gives each of them: row r of y is
// the product of row r of x and the matrix of the tile that r lies in. So x and y have rows that are nobody's
// where an expert's rows do not fill their last kTileRows. Of `args`, weights, rowScales and rows are not
// used. `kernel`: one of kGroupedKernels.
void groupedProduct(cudaStream_t stream, Path path, WeightType type, ProductKernel kernel,
                    const ProductArgs& args, const GroupedRows& grouped);

// Of rowTiles (1, 2 or 4) x 8 rows per block of threads, of 64, and of `rows`, 64 or 128 (kAmpere);
// `grouped`: null or as above.
void narrowProduct(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args,
                   const GroupedRows* grouped);
void wideProduct(cudaStream_t stream, Path path, WeightType type, const ProductArgs& args,
                 const GroupedRows* grouped);
void widerProduct(cudaStream_t stream, WeightType type, int rows, const ProductArgs& args);
void prepareNarrowProducts(Path path);
void prepareWideProducts(Path path);
void prepareWiderProducts();

// Once per device, before the first product of a path: lets the kernels use as much shared memory as they
// need.
void prepareProducts(Path path);

}  // namespace glm_relay::cuda
