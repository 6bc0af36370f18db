#include "cpu/quantized_matrix.h"

#include <optional>
#include <vector>

#include "cpu/load_strips.h"
#include "quant/quantize.h"

namespace glm_relay {

QuantizedMatrix::QuantizedMatrix(const HostMatrix& matrix, const KernelTable& kernels, ThreadPool& pool)
    : type_(matrix.format.type),
      layout_(matrix.n, matrix.k, matrix.format),
      memory_(layout_.bytes(), HostMemory::kStreamed) {
  n = matrix.n;
  k = matrix.k;
  bytes = layout_.bytes();
  std::vector<std::optional<StripQuantizer>> quantizers(pool.threads());
  std::vector<RoundingError> errors(layout_.strips);
  loadStrips(matrix, pool, [&](int strip, int thread) {
    if (!quantizers[thread]) quantizers[thread].emplace(matrix, kernels);
    errors[strip] = quantizers[thread]->quantize(memory_.data() + strip * layout_.stripBytes(), strip);
  });
  // In order, so that the sum is the same however the strips were shared out.
  for (const RoundingError& error : errors) rounding.add(error);
}

}  // namespace glm_relay
