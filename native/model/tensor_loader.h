// Reads single tensors of model files into a backend's memory, checks them, and counts what was read.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "cache/weight_cache.h"
#include "model/mapped_tensor.h"

namespace glm_relay {

struct TensorRounding {
  std::string role;
  RoundingError error;
};

// A table whose rows stay in files, in one or several.
class MappedTable {
 public:
  explicit MappedTable(std::vector<MappedTensor> parts) : parts_(std::move(parts)) {}
  DType dtype() const { return parts_.front().source().dtype; }
  const uint8_t* row(int index) const;

 private:
  std::vector<MappedTensor> parts_;
};

// Takes what a TensorLoader is asked for, notes how large it is, and loads nothing.
class TensorSizes {
 public:
  std::unique_ptr<DeviceMatrix> matrix(const TensorParts& parts, int rows, int columns,
                                       const WeightFormat& format);
  std::unique_ptr<DeviceMatrix> matrix(const TensorParts& parts, int columns, const WeightFormat& format);
  std::unique_ptr<DeviceBuffer> vector(const TensorParts& parts);
  std::unique_ptr<DeviceBuffer> vector(const TensorSource& source) { return vector(TensorParts{source}); }
  std::unique_ptr<DeviceBuffer> vector(const std::optional<TensorSource>& source) {
    return source ? vector(*source) : nullptr;
  }
  const WeightSizes& sizes() const { return sizes_; }

 private:
  WeightSizes sizes_;
};

// Every function throws std::runtime_error naming the tensor and its file.
class TensorLoader {
 public:
  // `loaded` hears of the stored bytes read since the last call. All arguments outlive this.
  TensorLoader(const KernelTable& kernels, Backend& backend, const std::function<void(uint64_t)>& loaded)
      : kernels_(kernels), backend_(backend), loaded_(loaded) {}

  // A matrix of `columns` columns; its first `rows` rows.
  std::unique_ptr<DeviceMatrix> matrix(const TensorParts& parts, int rows, int columns,
                                       const WeightFormat& format);
  // All its rows.
  std::unique_ptr<DeviceMatrix> matrix(const TensorParts& parts, int columns, const WeightFormat& format);

  // Matrices are taken from this part of a cache where it has them, else noted in it; null: neither. It
  // outlives the matrices' loading.
  void useCache(CachedPart* part) { cached_ = part; }

  // Norm weights and biases are small and are kept as float32, which is exact. Null for no parts.
  std::unique_ptr<DeviceBuffer> vector(const TensorParts& parts);
  std::unique_ptr<DeviceBuffer> vector(const TensorSource& source) { return vector(TensorParts{source}); }
  std::unique_ptr<DeviceBuffer> vector(const std::optional<TensorSource>& source) {
    return source ? vector(*source) : nullptr;
  }

  // Stays mapped. Looking at all of it also brings it into memory before the first token needs it.
  // Null for no parts.
  std::unique_ptr<MappedTable> table(const TensorParts& parts);
  std::unique_ptr<MappedTable> table(const std::optional<TensorSource>& source) {
    return source ? table(TensorParts{*source}) : nullptr;
  }

  // Everything that was loaded, as it is held.
  uint64_t bytes() const { return bytes_; }
  // Memory that came into being otherwise.
  void addBytes(uint64_t bytes) { bytes_ += bytes; }
  // Of every matrix that was rounded, in the order of loading.
  std::vector<TensorRounding> takeRoundings() { return std::move(roundings_); }

 private:
  std::unique_ptr<DeviceMatrix> readMatrix(const TensorParts& parts, int rows, int columns,
                                           const WeightFormat& format);

  const KernelTable& kernels_;
  Backend& backend_;
  const std::function<void(uint64_t)>& loaded_;
  CachedPart* cached_ = nullptr;
  uint64_t bytes_ = 0;
  std::vector<TensorRounding> roundings_;
};

}  // namespace glm_relay
