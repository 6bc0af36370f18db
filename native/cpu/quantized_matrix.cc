#include "cpu/quantized_matrix.h"

#include <optional>
#include <vector>

#include "cpu/load_strips.h"
#include "quant/quantize.h"

namespace glm_relay {

QuantizedMatrix::QuantizedMatrix(const HostMatrix& matrix, const KernelTable& kernels, ThreadPool& pool)
    : type_(matrix.format.type), layout_(matrix.n, matrix.k, matrix.format) {
  n = matrix.n;
  k = matrix.k;
  bytes = layout_.bytes();
  const auto memory = std::make_shared<HostMemory>(bytes, HostMemory::kStreamed);
  packed = std::shared_ptr<const uint8_t>(memory, memory->data());
  std::vector<std::optional<StripQuantizer>> quantizers(pool.threads());
  std::vector<RoundingError> errors(layout_.strips);
  loadStrips(matrix, pool, [&](int strip, int thread) {
    if (!quantizers[thread]) quantizers[thread].emplace(matrix, kernels);
    errors[strip] = quantizers[thread]->quantize(memory->data() + strip * layout_.stripBytes(), strip);
  });
  // In order, so that the sum is the same however the strips were shared out.
  for (const RoundingError& error : errors) rounding.add(error);
}

QuantizedMatrix::QuantizedMatrix(const PackedBytes& matrix)
    : type_(matrix.format.type), layout_(matrix.n, matrix.k, matrix.format) {
  n = matrix.n;
  k = matrix.k;
  bytes = matrix.bytes;
  rounding = matrix.rounding;
  packed = matrix.data;
}

}  // namespace glm_relay
