#include "cuda/cuda_experts.h"

#include "cuda/cuda_backend.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

void ExpertMemory::reserve(const ExpertShape& expertShape, int hidden, int rows, int threads,
                           cudaStream_t stream) {
  shape = expertShape;
  hiddenSize = hidden;
  const auto floats = [&](DeviceMemory& memory, int64_t count, int64_t columns) {
    memory.grow(static_cast<uint64_t>(count) * columns * sizeof(float), stream);
  };
  const int64_t choices = static_cast<int64_t>(rows) * shape.perToken;
  const WeightLayout router(shape.count, hidden, {});
  lowHalves.grow(halvesOf(rows, router.paddedColumns()) * sizeof(uint16_t), stream);
  floats(logits, rows, shape.count);
  floats(lowLogits, rows, shape.count);
  floats(rowOfPart, choices, 1);
  partOfRow.grow(choices * sizeof(ExpertPart), stream);
  floats(gathered, choices, hidden);
  floats(up, rows, 2 * static_cast<int64_t>(shape.ffnSize));
  floats(gated, rows, shape.ffnSize);
  floats(parts, choices, hidden);
  hostLogits.resize(static_cast<size_t>(rows) * shape.count);
  hostBias.resize(shape.count);
  scores.resize(static_cast<size_t>(threads) * 2 * shape.count);
  chosen.resize(choices);
  hostRows.resize(choices);
  hostParts.resize(choices);
}

uint64_t ExpertMemory::bytes() const {
  uint64_t sum = 0;
  for (const DeviceMemory* memory :
       {&lowHalves, &logits, &lowLogits, &rowOfPart, &partOfRow, &gathered, &up, &gated, &parts}) {
    sum += memory->bytes();
  }
  return sum;
}

void CudaBackend::reserveExperts(const ExpertShape& shape, int hiddenSize, int rows) {
  experts_.reserve(shape, hiddenSize, rows, pool_.threads(), stream_.get());
}

// logits[rows, experts] with the router's weights as stored and its input in two FP16 numbers, 22 bits: a
// choice between experts that are nearly as good should be that of float32.
void CudaBackend::route(const float* x, int rows, const CudaMatrix& router) {
  halved_ = {};
  float* logits = experts_.logits.as<float>();
  toHalves(stream_.get(), halves_.as<uint16_t>(), experts_.lowHalves.as<uint16_t>(), halfScales_.as<float>(),
           x, rows, router.k, router.layout.paddedColumns());
  multiplyHalves(logits, halves_.as<uint16_t>(), rows, router, nullptr);
  multiplyHalves(experts_.lowLogits.as<float>(), experts_.lowHalves.as<uint16_t>(), rows, router, nullptr);
  cuda::add(stream_.get(), logits, experts_.lowLogits.as<float>(), static_cast<int64_t>(rows) * router.n);
}

void CudaBackend::mixExperts(DeviceBuffer& y, const DeviceBuffer& x, int rows, const ExpertLayer& layer) {
  ExpertMemory& e = experts_;
  const float* in = static_cast<const CudaBuffer&>(x).floats();
  const int count = e.shape.count;
  const int perToken = e.shape.perToken;
  const int64_t size = e.hiddenSize;
  route(in, rows, static_cast<const CudaMatrix&>(*layer.router));
  copyOut(e.hostBias.data(), *layer.bias, count * sizeof(float));
  check(cudaMemcpyAsync(e.hostLogits.data(), e.logits.as<void>(),
                        static_cast<uint64_t>(rows) * count * sizeof(float), cudaMemcpyDeviceToHost,
                        stream_.get()),
        "choosing experts");
  check(cudaStreamSynchronize(stream_.get()), "choosing experts");
  pool_.forEach(rows, [&](int64_t row, int thread) {
    chooseExperts(e.chosen.data() + row * perToken, e.hostLogits.data() + row * count, e.hostBias.data(),
                  e.shape, e.scores.data() + static_cast<int64_t>(thread) * 2 * count);
  });

  // Rows of one expert lie side by side, in ascending order.
  std::vector<int> begins(count + 1, 0);
  const int choices = rows * perToken;
  for (int i = 0; i < choices; i++) begins[e.chosen[i].expert + 1]++;
  for (int expert = 0; expert < count; expert++) begins[expert + 1] += begins[expert];
  std::vector<int> next(begins.begin(), begins.end() - 1);
  for (int i = 0; i < choices; i++) {
    const int slot = next[e.chosen[i].expert]++;
    e.hostRows[slot] = i / perToken;
    e.hostParts[i] = {slot, e.chosen[i].weight};
  }
  const auto upload = [&](const DeviceMemory& to, const void* from, uint64_t bytes) {
    check(cudaMemcpyAsync(to.as<void>(), from, bytes, cudaMemcpyHostToDevice, stream_.get()),
          "choosing experts");
  };
  upload(e.rowOfPart, e.hostRows.data(), choices * sizeof(int32_t));
  upload(e.partOfRow, e.hostParts.data(), choices * sizeof(ExpertPart));

  cuda::gatherRows(stream_.get(), e.gathered.as<float>(), in, e.rowOfPart.as<int32_t>(), choices,
                   static_cast<int>(size));
  for (int expert = 0; expert < count; expert++) {
    const int begin = begins[expert];
    const int rowsOfExpert = begins[expert + 1] - begin;
    if (rowsOfExpert == 0) continue;
    const ExpertWeights& weights = layer.experts[expert];
    multiply(e.up.as<float>(), e.gathered.as<float>() + begin * size, rowsOfExpert,
             static_cast<const CudaMatrix&>(*weights.up), nullptr);
    cuda::gatedSilu(stream_.get(), e.gated.as<float>(), e.up.as<float>(), rowsOfExpert, e.shape.ffnSize);
    multiply(e.parts.as<float>() + begin * size, e.gated.as<float>(), rowsOfExpert,
             static_cast<const CudaMatrix&>(*weights.down), nullptr);
  }
  mixParts(stream_.get(), static_cast<CudaBuffer&>(y).floats(), e.parts.as<float>(),
           e.partOfRow.as<ExpertPart>(), rows, perToken, static_cast<int>(size));
}

}  // namespace glm_relay::cuda
