// Mixtures of experts on the GPU alone (CANON.md, Experts): the router's logits, the choice, and the rows of
// every expert side by side, for groupedProduct.
//
// A slot is a row's place beside the other rows of one of its experts: rows ascending, experts ascending.
// Those of an expert begin at a multiple of kTileRows, as groupedProduct wants it; what is left between is
// nobody's.
#pragma once

#include "cuda/kernels/product.h"
#include "cuda/kernels/rows.h"
#include "model/router.h"

namespace glm_relay::cuda {

struct RouterArgs {
  float* logits;           // [rows, experts]
  ChosenExpert* chosen;    // [rows, perToken]
  const float* x;          // [rows, k]
  const uint8_t* weights;  // of the router, [experts, k], FP16 as it lies in weight_layout.h
  const float* rowScales;  // [experts]
  const float* bias;       // [experts], of the choice alone
  ExpertShape shape;
  int rows;
  int k;
  int columnBlocks;
};

// logits = x times the router's weights: sums in float32, each made by one block of threads in an order that
// follows from k alone.
void routerLogits(cudaStream_t stream, const RouterArgs& args);

// What chooseExperts of model/router.h gives for every row, but for the last bit of exp.
void chooseExperts(cudaStream_t stream, const RouterArgs& args);

struct GroupArgs {
  ExpertPart* parts;   // [rows, perToken]: slot and weight, ranks ascending
  int32_t* rowOfSlot;  // [slots]; -1: nobody's
  ExpertTile* tiles;   // [tileCount]: all rows, then tiles without rows
  int slots;           // expertSlots(), or more
  int tileRows;        // a multiple of kTileRows
  int tileCount;       // expertTiles(), or more
};

// Tiles of `tileRows` rows that are enough, whatever the rows choose.
int expertTiles(int rows, const ExpertShape& shape, int tileRows);
inline int expertSlots(int rows, const ExpertShape& shape) {
  return expertTiles(rows, shape, kTileRows) * kTileRows;
}

// Groups the rows by what they have chosen.
void groupByExpert(cudaStream_t stream, const RouterArgs& args, const GroupArgs& group);

// chooseExperts and groupByExpert, in one kernel where few rows make that faster.
void chooseAndGroup(cudaStream_t stream, const RouterArgs& args, const GroupArgs& group);

// Brings FP16 rows to the slots [0, slots), by to.owners, which is GroupArgs::rowOfSlot.
void gatherHalves(cudaStream_t stream, const HalfRows& to, const HalfRows& from, int slots);

// Shared memory of the kernels above, for one block.
int64_t groupSharedBytes(int rows, const ExpertShape& shape);
// What a kernel may have of it on every GPU without being prepared.
constexpr int64_t kGroupSharedLimit = 48 << 10;

}  // namespace glm_relay::cuda
