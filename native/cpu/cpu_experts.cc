// The CPU backend's mixture of experts: rows are grouped by expert, so that the weights of an expert are
// read once per call however many rows chose it, and those of an expert that no row chose not at all.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.h"

namespace glm_relay {

void CpuBackend::reserveExperts(const ExpertShape& shape, int hiddenSize, int rows) {
  expertShape_ = shape;
  hiddenSize_ = hiddenSize;
  const auto reserve = [&](int64_t count, int64_t columns) {
    const uint64_t bytes = static_cast<uint64_t>(count) * columns * sizeof(float);
    expertScratchBytes_ += bytes;
    return std::make_unique<HostMemory>(bytes, HostMemory::kReady);
  };
  const int64_t choices = static_cast<int64_t>(rows) * shape.perToken;
  experts_.logits = reserve(rows, shape.count);
  experts_.scores = reserve(pool_.threads(), 2 * static_cast<int64_t>(shape.count));
  experts_.gathered = reserve(rows, hiddenSize);
  experts_.up = reserve(rows, 2 * static_cast<int64_t>(shape.ffnSize));
  experts_.gated = reserve(rows, shape.ffnSize);
  experts_.out = reserve(choices, hiddenSize);
  experts_.chosen.resize(choices);
  experts_.slots.resize(choices);
  experts_.rows.reserve(rows);
  expertScratchBytes_ += choices * (sizeof(ChosenExpert) + sizeof(int32_t)) + rows * sizeof(int32_t);
}

void CpuBackend::mixExperts(DeviceBuffer& y, const DeviceBuffer& x, int rows, const ExpertLayer& layer) {
  const float* in = static_cast<const HostBuffer&>(x).memory.floats();
  float* out = static_cast<HostBuffer&>(y).memory.floats();
  const float* bias = static_cast<const HostBuffer&>(*layer.bias).memory.floats();
  const int64_t count = expertShape_.count;
  const int64_t perToken = expertShape_.perToken;
  const int64_t size = hiddenSize_;
  multiply(experts_.logits->floats(), in, rows, *layer.router, nullptr);
  pool_.forEach(rows, [&](int64_t row, int thread) {
    chooseExperts(experts_.chosen.data() + row * perToken, experts_.logits->floats() + row * count, bias,
                  expertShape_, experts_.scores->floats() + thread * 2 * count);
  });
  int slot = 0;
  for (int expert = 0; expert < count; expert++) {
    runExpert(expert, layer.experts[expert], in, rows, slot);
  }
  pool_.forEach(rows, [&](int64_t row, int) {
    float* sum = out + row * size;
    std::fill(sum, sum + size, 0.0f);
    for (int64_t choice = row * perToken; choice < (row + 1) * perToken; choice++) {
      const float* part = experts_.out->floats() + experts_.slots[choice] * size;
      kernels_.scaleAdd(sum, part, experts_.chosen[choice].weight, sum, size);
    }
  });
}

// Runs the rows that chose the expert; their results lie in `out` from `slot` on, which moves.
void CpuBackend::runExpert(int expert, const ExpertWeights& weights, const float* x, int rows, int& slot) {
  const int64_t perToken = expertShape_.perToken;
  const int64_t size = hiddenSize_;
  const int64_t ffnSize = expertShape_.ffnSize;
  const int first = slot;
  experts_.rows.clear();
  for (int row = 0; row < rows; row++) {
    const ChosenExpert* chosen = experts_.chosen.data() + row * perToken;
    for (int64_t rank = 0; rank < perToken; rank++) {
      if (chosen[rank].expert != expert) continue;
      experts_.slots[row * perToken + rank] = slot++;
      experts_.rows.push_back(row);
    }
  }
  const int count = slot - first;
  if (count == 0) return;
  float* gathered = experts_.gathered->floats();
  for (int i = 0; i < count; i++) {
    std::memcpy(gathered + i * size, x + experts_.rows[i] * size, size * sizeof(float));
  }
  float* up = experts_.up->floats();
  float* gated = experts_.gated->floats();
  multiply(up, gathered, count, *weights.up, nullptr);
  pool_.forEach(count, [&](int64_t i, int) {
    kernels_.gatedSilu(gated + i * ffnSize, up + 2 * i * ffnSize, static_cast<int>(ffnSize));
  });
  multiply(experts_.out->floats() + first * size, gated, count, *weights.down, nullptr);
}

}  // namespace glm_relay
