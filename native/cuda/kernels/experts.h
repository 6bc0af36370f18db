// Mixtures of experts on the GPU alone (CANON.md, Experts): the router's logits, the choice, and the rows of
// every expert side by side, for groupedProduct.
//
// A slot is a row's place beside the other rows of one of its experts: slots of an expert follow each other,
// rows ascending, experts ascending. There are rows * perToken of them.
#pragma once

#include "cuda/kernels/product.h"
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
  int32_t* rowOfSlot;  // [rows * perToken]
  ExpertTile* tiles;   // [tileCount]: all slots, then tiles without rows
  int tileRows;
  int tileCount;  // expertTiles(), or more
};

// Tiles of `tileRows` rows that are enough, whatever the rows choose.
int expertTiles(int rows, const ExpertShape& shape, int tileRows);

// Groups the rows by what they have chosen.
void groupByExpert(cudaStream_t stream, const RouterArgs& args, const GroupArgs& group);

// chooseExperts and groupByExpert, in one kernel where few rows make that faster.
void chooseAndGroup(cudaStream_t stream, const RouterArgs& args, const GroupArgs& group);

// Shared memory of the kernels above, for one block.
int64_t groupSharedBytes(int rows, const ExpertShape& shape);
// What a kernel may have of it on every GPU without being prepared.
constexpr int64_t kGroupSharedLimit = 48 << 10;

}  // namespace glm_relay::cuda
