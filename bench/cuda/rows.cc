// The operations between products: how long they take with one row, where a launch is most of it, and with
// many.
#include "cuda/kernels/rows.h"

#include <cstdio>

#include "cuda/weight_layout.h"
#include "measure.h"

namespace glm_relay::cuda {

void benchRows(const Limits& limits) {
  constexpr int kMaxRows = 512;
  const RandomMemory x(2ull * kMaxRows * kMaxRowColumns * sizeof(float));
  const ZeroMemory y(1ull * kMaxRows * kMaxRowColumns * sizeof(float));
  const ZeroMemory halves(halvesOf(kMaxRows, kMaxRowColumns) * sizeof(uint16_t));
  const ZeroMemory scales(kMaxRows * sizeof(float));
  const RandomMemory weights(kMaxRowColumns * sizeof(float));
  std::printf("\noperations between products, us (and share of the copy bandwidth with 512 rows)\n");
  std::printf("%-24s %8s %8s %8s %8s\n", "", "1 row", "8", "64", "512");
  const auto line = [&](const char* name, double bytesOfRow, const std::function<void(int rows)>& run) {
    std::printf("%-24s", name);
    double us = 0.0;
    for (int rows : {1, 8, 64, kMaxRows}) {
      us = microseconds([&](int) { run(rows); });
      std::printf(" %8.2f", us);
    }
    std::printf("  %5.1f%%\n", 100.0 * bytesOfRow * kMaxRows / (us * 1e-6) / limits.copyBytes);
  };
  const auto from = reinterpret_cast<const float*>(x.get());
  const auto weight = reinterpret_cast<const float*>(weights.get());
  for (int size : {4096, 12288}) {
    const HalfRows to = {halves.as<uint16_t>(), scales.as<float>(), size};
    line(("RMSNorm of " + std::to_string(size)).c_str(), size * 10.0, [&](int rows) {
      rmsNormRows(stream(), to, y.as<float>(), from, nullptr, weight, rows, size, 1e-5f);
    });
    line(("LayerNorm of " + std::to_string(size)).c_str(), size * 10.0, [&](int rows) {
      layerNormRows(stream(), to, y.as<float>(), from, nullptr, weight, weight, rows, size, 1e-5f);
    });
    line(("FP16 rows of " + std::to_string(size)).c_str(), size * 6.0,
         [&](int rows) { halveRows(stream(), to, from, rows, size); });
    line(("sum of " + std::to_string(size)).c_str(), size * 12.0, [&](int rows) {
      sumRows(stream(), {y.as<float>(), y.as<float>(), 1.0f, from, DType::kFloat16},
              static_cast<int64_t>(rows) * size);
    });
  }
  const ZeroMemory maxima(1ull * kMaxRows * kRowShares * sizeof(uint32_t));
  for (int size : {13696, 32768}) {
    const HalfRows to = {halves.as<uint16_t>(), scales.as<float>(), size, nullptr, maxima.as<uint32_t>()};
    line(("gated silu of " + std::to_string(size)).c_str(), size * 14.0, [&](int rows) {
      activateRows(stream(), to, y.as<float>(), Activation::kGatedSilu, from, rows, size);
    });
  }
}

}  // namespace glm_relay::cuda
