// Rounds the weights of one strip when they are loaded. A pure function of the stored weights and the
// format (CANON.md): not of the kernel variant, the threads or the machine.
#pragma once

#include <vector>

#include "backend.h"

namespace glm_relay {

class StripQuantizer {
 public:
  // Works for one matrix and on one thread at a time.
  StripQuantizer(const HostMatrix& matrix, const KernelTable& kernels);

  // Writes strip `strip` to zeroed memory; returns how far the rounded weights are from the stored ones.
  // Throws WeightError for a weight that is not finite or too large for an FP16 scale.
  RoundingError quantize(uint8_t* out, int strip);

 private:
  void quantizeRow(uint8_t* strip, int row, RoundingError& error);
  void pack(uint8_t* strip, int tile) const;

  const HostMatrix& matrix_;
  const KernelTable& kernels_;
  const QuantLayout layout_;
  const int columns_;            // of a whole number of tiles
  std::vector<float> weights_;   // one row
  std::vector<int8_t> values_;   // [32 rows][columns]
  std::vector<uint8_t> joined_;  // one row of a matrix whose pieces lie side by side
};

}  // namespace glm_relay
