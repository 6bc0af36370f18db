#include "model/tensor_loader.h"

#include <algorithm>
#include <stdexcept>

#include "quant/finite.h"

namespace glm_relay {

namespace {

// Of a table, looked at between two reports of progress.
constexpr int kTableRows = 1024;

// Runs `read`; what it finds wrong with the content is told with the tensor's name.
template <class Read>
auto naming(const TensorSource& source, Read read) -> decltype(read()) {
  try {
    return read();
  } catch (const WeightError& error) {
    throw std::runtime_error("tensor " + source.role + " of " + source.file + ": " + error.what());
  }
}

int rowsOf(const TensorParts& parts) {
  int rows = 0;
  for (const TensorSource& part : parts) rows += part.shape[0];
  return rows;
}

// Parts of all columns lie one below the other.
bool liesSideBySide(const TensorParts& parts, int columns) { return parts.front().shape[1] != columns; }

int matrixRows(const TensorParts& parts, int columns) {
  return liesSideBySide(parts, columns) ? parts.front().shape[0] : rowsOf(parts);
}

}  // namespace

std::unique_ptr<DeviceMatrix> TensorLoader::matrix(const TensorParts& parts, int rows, int columns,
                                                   const WeightFormat& format) {
  const TensorSource& first = parts.front();
  const MatrixRecord record = {first.role, rows, columns, first.dtype, format};
  std::unique_ptr<DeviceMatrix> matrix;
  const std::string what = "the weights of " + first.role;
  if (cached_ != nullptr) matrix = allocating(what, [&] { return cached_->take(record, backend_); });
  if (matrix != nullptr) {
    loaded_(static_cast<uint64_t>(rows) * columns * dtypeBytes(first.dtype));
  } else {
    matrix = allocating(what, [&] { return readMatrix(parts, rows, columns, format); });
    if (cached_ != nullptr) cached_->add(record, *matrix);
  }
  if (format.type != WeightType::kStored) roundings_.push_back({first.role, matrix->rounding});
  bytes_ += matrix->bytes;
  return matrix;
}

std::unique_ptr<DeviceMatrix> TensorLoader::readMatrix(const TensorParts& parts, int rows, int columns,
                                                       const WeightFormat& format) {
  const TensorSource& first = parts.front();
  const bool sideBySide = liesSideBySide(parts, columns);
  std::vector<MappedTensor> tensors;
  std::vector<HostPiece> pieces;
  tensors.reserve(parts.size());
  for (const TensorSource& part : parts) {
    const MappedTensor& tensor = tensors.emplace_back(part);
    tensor.expectSequentialRead();
    pieces.push_back({tensor.data(), part.shape[0], part.shape[1]});
  }
  const uint64_t rowBytes = static_cast<uint64_t>(columns) * dtypeBytes(first.dtype);
  int rowsRead = 0;
  const auto consumed = [&](int rowsDone) {
    loaded_((rowsDone - rowsRead) * rowBytes);
    rowsRead = rowsDone;
    for (const MappedTensor& tensor : tensors) {
      const TensorSource& source = tensor.source();
      const int count = std::min(rowsDone, source.shape[0]);
      tensor.release(count * (source.byteLength / source.shape[0]));
      if (!sideBySide) rowsDone -= count;
    }
  };
  return naming(first, [&] {
    return backend_.loadMatrix({pieces, sideBySide, first.dtype, rows, columns, format, consumed});
  });
}

std::unique_ptr<DeviceMatrix> TensorLoader::matrix(const TensorParts& parts, int columns,
                                                   const WeightFormat& format) {
  return matrix(parts, matrixRows(parts, columns), columns, format);
}

std::unique_ptr<DeviceBuffer> TensorLoader::vector(const TensorParts& parts) {
  if (parts.empty()) return nullptr;
  std::vector<float> values(rowsOf(parts));
  float* out = values.data();
  for (const TensorSource& part : parts) {
    const MappedTensor tensor(part);
    const int size = part.shape[0];
    naming(part, [&] { requireFinite(tensor.data(), part.dtype, size, 0, size); });
    kernels_.widen[static_cast<int>(part.dtype)](out, tensor.data(), size);
    out += size;
    loaded_(part.byteLength);
  }
  auto buffer = allocating("the weights of " + parts.front().role,
                           [&] { return backend_.allocate(values.size() * sizeof(float)); });
  backend_.copyIn(*buffer, values.data(), values.size() * sizeof(float));
  bytes_ += buffer->bytes;
  return buffer;
}

std::unique_ptr<DeviceMatrix> TensorSizes::matrix(const TensorParts&, int rows, int columns,
                                                  const WeightFormat& format) {
  sizes_.matrices.push_back({rows, columns, format});
  return nullptr;
}

std::unique_ptr<DeviceMatrix> TensorSizes::matrix(const TensorParts& parts, int columns,
                                                  const WeightFormat& format) {
  return matrix(parts, matrixRows(parts, columns), columns, format);
}

std::unique_ptr<DeviceBuffer> TensorSizes::vector(const TensorParts& parts) {
  if (!parts.empty()) sizes_.buffers.push_back(rowsOf(parts) * sizeof(float));
  return nullptr;
}

const uint8_t* MappedTable::row(int index) const {
  size_t part = 0;
  for (; index >= parts_[part].source().shape[0]; part++) index -= parts_[part].source().shape[0];
  const TensorSource& source = parts_[part].source();
  return parts_[part].data() + index * (source.byteLength / source.shape[0]);
}

std::unique_ptr<MappedTable> TensorLoader::table(const TensorParts& parts) {
  if (parts.empty()) return nullptr;
  std::vector<MappedTensor> tensors;
  for (const TensorSource& source : parts) {
    const MappedTensor& tensor = tensors.emplace_back(source);
    const int columns = source.shape[1];
    const uint64_t rowBytes = source.byteLength / source.shape[0];
    naming(source, [&] {
      for (int row = 0; row < source.shape[0]; row += kTableRows) {
        const int rows = std::min(kTableRows, source.shape[0] - row);
        requireFinite(tensor.data() + row * rowBytes, source.dtype, static_cast<int64_t>(rows) * columns, row,
                      columns);
        loaded_(rows * rowBytes);
      }
    });
    if (backend_.inHostMemory()) bytes_ += source.byteLength;
  }
  return std::make_unique<MappedTable>(std::move(tensors));
}

}  // namespace glm_relay
