// A weight matrix in strips of 32 interleaved rows (kernels.h), in the type it is stored in: as many
// bytes as in the file, plus the rows that fill up the last strip.
#pragma once

#include "backend.h"
#include "cpu/host_memory.h"
#include "model/thread_pool.h"

namespace glm_relay {

class PackedMatrix : public DeviceMatrix {
 public:
  // Throws WeightError for a weight that is not finite.
  PackedMatrix(const HostMatrix& matrix, ThreadPool& pool);
  // Of packedBytes() bytes that were packed before.
  explicit PackedMatrix(const PackedBytes& matrix);

  DType dtype() const { return dtype_; }
  int strips() const { return (n + kStripRows - 1) / kStripRows; }
  const uint8_t* data() const { return packed.get(); }

  static uint64_t packedBytes(int n, int k, DType dtype);

 private:
  DType dtype_;
};

}  // namespace glm_relay
