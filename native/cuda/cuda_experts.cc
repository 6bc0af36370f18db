#include "cuda/cuda_experts.h"

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

namespace {

// Which of an expert's matrices.
constexpr int kUp = 0;
constexpr int kDown = 1;

// By how many rows an expert has on average: a tile that is too small reads weights more than once, one that
// is too large computes rows that are not there. The borders are where an H200's times for GLM-4.5 and
// GLM-4.5-Air cross (cuda_bench experts).
ProductKernel kernelFor(int rows, const ExpertShape& shape) {
  const int average = rows * shape.perToken / shape.count;
  if (rows <= rowsOf(ProductKernel::kNarrow8) || average <= 6) return ProductKernel::kNarrow8;
  return average < 24 ? ProductKernel::kNarrow16 : ProductKernel::kWide;
}

int paddedColumnsOf(int columns) { return WeightLayout(1, columns, {}).paddedColumns(); }

}  // namespace

void ExpertMemory::reserve(const ExpertShape& expertShape, int hidden, int rows, cudaStream_t stream) {
  shape = expertShape;
  hiddenSize = hidden;
  if (groupSharedBytes(rows, shape) > kGroupSharedLimit) {
    throw CudaError(std::to_string(shape.count) + " experts: grouping " + std::to_string(rows) +
                    " rows by so many takes " + std::to_string(groupSharedBytes(rows, shape)) +
                    " bytes of shared memory; expected at most " + std::to_string(kGroupSharedLimit));
  }
  const uint64_t choices = static_cast<uint64_t>(rows) * shape.perToken;
  const int slots = expertSlots(rows, shape);
  const int widest = paddedColumnsOf(std::max(hidden, shape.ffnSize));
  const auto reserve = [&](DeviceMemory& memory, uint64_t count, uint64_t bytes) {
    memory.grow(count * bytes, stream);
  };
  reserve(logits, static_cast<uint64_t>(rows) * shape.count, sizeof(float));
  reserve(chosen, choices, sizeof(ChosenExpert));
  reserve(partOfRow, choices, sizeof(ExpertPart));
  reserve(rowOfSlot, slots, sizeof(int32_t));
  reserve(tiles, expertTiles(rows, shape, kTileRows), sizeof(ExpertTile));
  reserve(halves, halvesOf(slots, widest), sizeof(uint16_t));
  reserve(halfScales, slots, sizeof(float));
  reserve(up, 2 * static_cast<uint64_t>(slots) * shape.ffnSize, sizeof(float));
  reserve(parts, static_cast<uint64_t>(slots) * hidden, sizeof(float));
}

uint64_t ExpertMemory::bytes() const {
  uint64_t sum = 0;
  for (const DeviceMemory* memory :
       {&logits, &chosen, &partOfRow, &rowOfSlot, &tiles, &halves, &halfScales, &up, &parts}) {
    sum += memory->bytes();
  }
  return sum;
}

// Where the matrices of the experts lie: those of up, then those of down.
void CudaBackend::prepareExperts(ExpertLayer& layer) {
  std::vector<ExpertMatrix> matrices;
  for (int which : {kUp, kDown}) {
    for (const ExpertWeights& expert : layer.experts) {
      const ProductArgs args =
          static_cast<const CudaMatrix&>(which == kUp ? *expert.up : *expert.down).args();
      matrices.push_back({args.weights, args.rowScales});
    }
  }
  const uint64_t bytes = matrices.size() * sizeof(ExpertMatrix);
  auto prepared = std::make_unique<CudaBuffer>(bytes, stream());
  copyIn(*prepared, matrices.data(), bytes);
  layer.prepared = std::move(prepared);
}

void CudaBackend::reserveExperts(const ExpertShape& shape, int hiddenSize, int rows) {
  experts_.reserve(shape, hiddenSize, rows, stream());
}

void CudaBackend::multiplyExperts(float* y, const HalfRows& x, const ExpertLayer& layer, int which,
                                  ProductKernel kernel, int tileCount) {
  const ExpertWeights& first = layer.experts.front();
  const CudaMatrix& matrix = static_cast<const CudaMatrix&>(which == kUp ? *first.up : *first.down);
  ProductArgs args = matrix.args();
  args.y = y;
  args.x = x.halves;
  args.xScales = x.scales;
  GroupedRows grouped = {};
  grouped.matrices = static_cast<const CudaBuffer&>(*layer.prepared).memory.as<ExpertMatrix>() +
                     which * layer.experts.size();
  grouped.tiles = experts_.tiles.as<ExpertTile>();
  grouped.tileCount = tileCount;
  groupedProduct(stream(), path_, matrix.type, kernel, args, grouped);
}

void CudaBackend::mixExperts(DeviceBuffer& y, const DeviceBuffer& x, int rows, const ExpertLayer& layer) {
  ExpertMemory& e = experts_;
  const float* in = static_cast<const CudaBuffer&>(x).floats();
  const CudaMatrix& router = static_cast<const CudaMatrix&>(*layer.router);
  const ProductKernel kernel = kernelFor(rows, e.shape);

  RouterArgs choice = {};
  choice.logits = e.logits.as<float>();
  choice.chosen = e.chosen.as<ChosenExpert>();
  choice.x = in;
  choice.weights = router.blocks.as<uint8_t>();
  choice.rowScales = router.rowScales.as<float>();
  choice.bias = static_cast<const CudaBuffer&>(*layer.bias).floats();
  choice.shape = e.shape;
  choice.rows = rows;
  choice.k = e.hiddenSize;
  choice.columnBlocks = router.layout.columnBlocks;
  GroupArgs group = {};
  group.parts = e.partOfRow.as<ExpertPart>();
  group.rowOfSlot = e.rowOfSlot.as<int32_t>();
  group.tiles = e.tiles.as<ExpertTile>();
  group.slots = expertSlots(rows, e.shape);
  group.tileRows = rowsOf(kernel);
  group.tileCount = expertTiles(rows, e.shape, group.tileRows);
  routerLogits(stream(), choice);
  chooseAndGroup(stream(), choice, group);

  // A row becomes FP16 once, for all of its experts; the places of what they make of it are the same.
  HalfRows halves = {e.halves.as<uint16_t>(), e.halfScales.as<float>(), paddedColumnsOf(e.hiddenSize),
                     group.rowOfSlot};
  gatherHalves(stream(), halves, halvesFor(in, rows, e.hiddenSize), group.slots);
  multiplyExperts(e.up.as<float>(), halves, layer, kUp, kernel, group.tileCount);
  halves.paddedColumns = paddedColumnsOf(e.shape.ffnSize);
  activateRows(stream(), halves, nullptr, Activation::kGatedSilu, e.up.as<float>(), group.slots,
               e.shape.ffnSize);
  multiplyExperts(e.parts.as<float>(), halves, layer, kDown, kernel, group.tileCount);
  float* out = static_cast<CudaBuffer&>(y).floats();
  if (halved_.from == out) halved_ = {};
  mixParts(stream(), out, e.parts.as<float>(), group.parts, rows, e.shape.perToken, e.hiddenSize);
}

}  // namespace glm_relay::cuda
