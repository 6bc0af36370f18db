// A weight matrix rounded to 4 or 8 bits (quant/format.h).
#pragma once

#include "backend.h"
#include "cpu/host_memory.h"
#include "model/thread_pool.h"

namespace glm_relay {

class QuantizedMatrix : public DeviceMatrix {
 public:
  // Throws WeightError for weights that cannot be rounded.
  QuantizedMatrix(const HostMatrix& matrix, const KernelTable& kernels, ThreadPool& pool);
  // Of layout().bytes() bytes that were rounded before.
  explicit QuantizedMatrix(const PackedBytes& matrix);

  WeightType type() const { return type_; }
  const QuantLayout& layout() const { return layout_; }
  const uint8_t* data() const { return packed.get(); }

 private:
  WeightType type_;
  QuantLayout layout_;
};

}  // namespace glm_relay
