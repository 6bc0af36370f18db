// y[rows, n] = x[rows, k] * w[n, k]^T (+ bias), on tensor cores: x as FP16 with a power of two per row
// (toHalves), w as it lies in weight_layout.h, sums in float32.
//
// Every output is one sum along k, 16 columns (kTuring: 8) per matrix instruction, ascending, made by one
// warp: whatever the tile, and so whatever the number of rows. Tiles differ in how many rows and columns a
// block of threads computes: 4 warps side by side, each with kRowTiles x 16 rows and kColumnTiles x 8
// columns.
#pragma once

#include "cuda/kernels/kernels.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

struct ProductArgs {
  float* y;
  const uint16_t* x;     // [rows, layout.paddedColumns()], FP16
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

// Enqueues the product with the best tile for so many rows.
void product(cudaStream_t stream, Path path, WeightType type, const ProductArgs& args);

// The same with a tile of `rowTiles` (1, 2 or 4) x 16 rows; for tests.
void productWithTile(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args);

// The rows that one block of threads computes together: those of one expert, or no rows.
struct ExpertTile {
  int32_t expert;
  int32_t firstRow;
  int32_t rows;  // at most 16 * rowTiles
};
// The weights of an expert, in the layout that ProductArgs gives.
struct ExpertMatrix {
  const uint8_t* weights;
  const float* rowScales;
};
struct GroupedRows {
  const ExpertMatrix* matrices;  // [experts]
  const ExpertTile* tiles;       // [tileCount]
  const int32_t* xRowOfRow;      // the row of x of each row of y; null: the same
  int tileCount;
};

// The same for rows of many experts in one grid, bit by bit what `product` gives each of them: row r of y is
// the product of row xRowOfRow[r] of x and the matrix of the tile that r lies in. Of `args`, weights,
// rowScales and rows are not used.
void groupedProduct(cudaStream_t stream, Path path, WeightType type, int rowTiles, const ProductArgs& args,
                    const GroupedRows& grouped);

// Once per device, before the first product of a path: lets the kernels use as much shared memory as they
// need.
void prepareProducts(Path path);

}  // namespace glm_relay::cuda
