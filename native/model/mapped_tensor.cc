#include "model/mapped_tensor.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace glm_relay {

namespace {

[[noreturn]] void fail(const TensorSource& source, const std::string& what) {
  throw std::runtime_error("tensor " + source.role + " of " + source.file + ": " + what);
}

}  // namespace

MappedTensor::MappedTensor(const TensorSource& source) : source_(source) {
  const int file = open(source.file.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(source, std::strerror(errno));
  struct stat status;
  if (fstat(file, &status) != 0) {
    const int error = errno;
    close(file);
    fail(source, std::strerror(error));
  }
  const uint64_t size = static_cast<uint64_t>(status.st_size);
  if (source.byteOffset > size || source.byteLength > size - source.byteOffset) {
    close(file);
    fail(source, "bytes " + std::to_string(source.byteOffset) + " to " +
                     std::to_string(source.byteOffset + source.byteLength) + " lie beyond the file's " +
                     std::to_string(size));
  }
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t begin = source.byteOffset / page * page;
  mappedBytes_ = source.byteOffset - begin + source.byteLength;
  mapping_ = mmap(nullptr, mappedBytes_, PROT_READ, MAP_SHARED, file, static_cast<off_t>(begin));
  const int error = errno;
  close(file);
  if (mapping_ == MAP_FAILED) fail(source, std::strerror(error));
  data_ = static_cast<const uint8_t*>(mapping_) + (source.byteOffset - begin);
}

MappedTensor::MappedTensor(MappedTensor&& other) noexcept
    : source_(std::move(other.source_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mappedBytes_(other.mappedBytes_),
      data_(other.data_) {}

MappedTensor::~MappedTensor() {
  if (mapping_ != nullptr) munmap(mapping_, mappedBytes_);
}

void MappedTensor::expectSequentialRead() const { madvise(mapping_, mappedBytes_, MADV_SEQUENTIAL); }

void MappedTensor::release(uint64_t bytes) const {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t end = static_cast<uint64_t>(data_ - static_cast<const uint8_t*>(mapping_)) + bytes;
  madvise(mapping_, end / page * page, MADV_DONTNEED);
}

}  // namespace glm_relay
