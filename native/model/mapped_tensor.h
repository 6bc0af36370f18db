// A tensor of a model file, mapped read-only. Only the pages of this tensor are ever touched, and
// they leave the process when the object does; the kernel's page cache keeps what it likes.
#pragma once

#include "model/plan.h"

namespace glm_relay {

class MappedTensor {
 public:
  // Throws std::runtime_error naming role and file when the file cannot be read or is too short.
  explicit MappedTensor(const TensorSource& source);
  ~MappedTensor();
  MappedTensor(MappedTensor&& other) noexcept;
  MappedTensor(const MappedTensor&) = delete;
  MappedTensor& operator=(const MappedTensor&) = delete;

  // byteLength bytes; aligned only as the file happens to be.
  const uint8_t* data() const { return data_; }
  const TensorSource& source() const { return source_; }

  // Tells the kernel to read ahead: for tensors that are read once from end to end.
  void expectSequentialRead() const;
  // The first `bytes` bytes are not needed any more: their pages leave the process.
  void release(uint64_t bytes) const;

 private:
  TensorSource source_;
  void* mapping_ = nullptr;
  size_t mappedBytes_ = 0;
  const uint8_t* data_ = nullptr;
};

}  // namespace glm_relay
