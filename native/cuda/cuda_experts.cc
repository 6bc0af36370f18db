#include "cuda/cuda_experts.h"

#include <string>
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

namespace {

constexpr int kTileRows = 16;

// Which of an expert's matrices.
constexpr int kUp = 0;
constexpr int kDown = 1;

// Tiles of 16 rows that a block of threads computes, by how many rows an expert has on average: a tile that
// is too small reads weights more than once, one that is too large computes rows that are not there.
int rowTilesFor(int rows, const ExpertShape& shape) {
  const int average = rows * shape.perToken / shape.count;
  return rows <= kTileRows || average <= 8 ? 1 : average <= 24 ? 2 : 4;
}

}  // namespace

void ExpertMemory::reserve(const ExpertShape& expertShape, int hidden, int rows, cudaStream_t stream) {
  shape = expertShape;
  hiddenSize = hidden;
  if (groupSharedBytes(rows, shape) > kGroupSharedLimit) {
    throw CudaError(std::to_string(shape.count) + " experts: grouping " + std::to_string(rows) +
                    " rows by so many takes " + std::to_string(groupSharedBytes(rows, shape)) +
                    " bytes of shared memory; expected at most " + std::to_string(kGroupSharedLimit));
  }
  const uint64_t slots = static_cast<uint64_t>(rows) * shape.perToken;
  const WeightLayout down(hidden, shape.ffnSize, {});
  const auto reserve = [&](DeviceMemory& memory, uint64_t count, uint64_t bytes) {
    memory.grow(count * bytes, stream);
  };
  reserve(logits, static_cast<uint64_t>(rows) * shape.count, sizeof(float));
  reserve(chosen, slots, sizeof(ChosenExpert));
  reserve(partOfRow, slots, sizeof(ExpertPart));
  reserve(rowOfSlot, slots, sizeof(int32_t));
  reserve(tiles, expertTiles(rows, shape, kTileRows), sizeof(ExpertTile));
  reserve(up, slots * 2 * shape.ffnSize, sizeof(float));
  reserve(gated, slots * down.paddedColumns(), sizeof(uint16_t));
  reserve(gatedScales, slots, sizeof(float));
  reserve(parts, slots * hidden, sizeof(float));
}

uint64_t ExpertMemory::bytes() const {
  uint64_t sum = 0;
  for (const DeviceMemory* memory :
       {&logits, &chosen, &partOfRow, &rowOfSlot, &tiles, &up, &gated, &gatedScales, &parts}) {
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
  auto prepared = std::make_unique<CudaBuffer>(bytes, stream_.get());
  copyIn(*prepared, matrices.data(), bytes);
  layer.prepared = std::move(prepared);
}

void CudaBackend::reserveExperts(const ExpertShape& shape, int hiddenSize, int rows) {
  experts_.reserve(shape, hiddenSize, rows, stream_.get());
}

void CudaBackend::multiplyExperts(float* y, const uint16_t* x, const float* xScales, const int32_t* xRowOfRow,
                                  const ExpertLayer& layer, int which, int rowTiles, int tileCount) {
  const ExpertWeights& first = layer.experts.front();
  const CudaMatrix& matrix = static_cast<const CudaMatrix&>(which == kUp ? *first.up : *first.down);
  ProductArgs args = matrix.args();
  args.y = y;
  args.x = x;
  args.xScales = xScales;
  GroupedRows grouped = {};
  grouped.matrices = static_cast<const CudaBuffer&>(*layer.prepared).memory.as<ExpertMatrix>() +
                     which * layer.experts.size();
  grouped.tiles = experts_.tiles.as<ExpertTile>();
  grouped.xRowOfRow = xRowOfRow;
  grouped.tileCount = tileCount;
  groupedProduct(stream_.get(), path_, matrix.type, rowTiles, args, grouped);
}

void CudaBackend::mixExperts(DeviceBuffer& y, const DeviceBuffer& x, int rows, const ExpertLayer& layer) {
  ExpertMemory& e = experts_;
  const float* in = static_cast<const CudaBuffer&>(x).floats();
  const CudaMatrix& router = static_cast<const CudaMatrix&>(*layer.router);
  const int rowTiles = rowTilesFor(rows, e.shape);

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
  group.tileRows = rowTiles * kTileRows;
  group.tileCount = expertTiles(rows, e.shape, group.tileRows);
  routerLogits(stream_.get(), choice);
  chooseAndGroup(stream_.get(), choice, group);

  // A row becomes FP16 once, for all of its experts.
  const int slots = rows * e.shape.perToken;
  const int paddedFfn = WeightLayout(e.hiddenSize, e.shape.ffnSize, {}).paddedColumns();
  toHalves(stream_.get(), halves_.as<uint16_t>(), halfScales_.as<float>(), in, rows, e.hiddenSize,
           router.layout.paddedColumns());
  multiplyExperts(e.up.as<float>(), halves_.as<uint16_t>(), halfScales_.as<float>(), group.rowOfSlot, layer,
                  kUp, rowTiles, group.tileCount);
  gatedSiluToHalves(stream_.get(), e.gated.as<uint16_t>(), e.gatedScales.as<float>(), e.up.as<float>(), slots,
                    e.shape.ffnSize, paddedFfn);
  multiplyExperts(e.parts.as<float>(), e.gated.as<uint16_t>(), e.gatedScales.as<float>(), nullptr, layer,
                  kDown, rowTiles, group.tileCount);
  mixParts(stream_.get(), static_cast<CudaBuffer&>(y).floats(), e.parts.as<float>(), group.parts, rows,
           e.shape.perToken, e.hiddenSize);
}

}  // namespace glm_relay::cuda
