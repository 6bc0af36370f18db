// The file that keeps the matrices of one layer, or of the head, in the backend's own layout.
//
//   magic, layout version, sizes, checksum of the header   64 bytes
//   key, and one record per matrix                         the rest of the header
//   matrices                                               each begins on a multiple of 4 KiB
//
// The header is written last, so a file without one was never finished. Everything is little-endian.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend.h"
#include "cache/descriptor.h"
#include "model/thread_pool.h"

namespace glm_relay {

// Says what is wrong with a file; whoever knows its name adds it.
class WeightFileError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct MatrixRecord {
  std::string role;
  int n = 0;
  int k = 0;
  DType dtype = DType::kFloat32;  // of the stored weights
  WeightFormat format;
  RoundingError rounding{};
  uint64_t bytes = 0;
  uint64_t offset = 0;
  uint64_t checksum = 0;
};

struct WeightFileHeader {
  std::string key;
  std::vector<MatrixRecord> matrices;
  uint64_t fileBytes = 0;

  // Gives every matrix its offset, and the file its size.
  void place();
  std::vector<uint8_t> encode() const;
  // Throws WeightFileError for anything that `encode` has not made, or that does not fit `fileBytes`.
  static WeightFileHeader decode(const uint8_t* data, uint64_t fileBytes);
};

// A finished file, mapped read-only, with a shared lock that keeps it in the cache.
class WeightFile {
 public:
  // Maps the file, looks at its header and then at every byte. Throws WeightFileError, also when the key is
  // another.
  WeightFile(Descriptor file, const std::string& key, ThreadPool& pool);
  ~WeightFile();
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  const std::vector<MatrixRecord>& matrices() const { return header_.matrices; }
  const uint8_t* data(const MatrixRecord& matrix) const { return bytes() + matrix.offset; }

 private:
  const uint8_t* bytes() const { return static_cast<const uint8_t*>(mapping_); }
  void readHeader(const std::string& key);
  void verify(ThreadPool& pool) const;

  Descriptor file_;
  void* mapping_;
  uint64_t size_ = 0;
  WeightFileHeader header_;
};

}  // namespace glm_relay
