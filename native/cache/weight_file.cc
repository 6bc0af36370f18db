#include "cache/weight_file.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "cache/checksum.h"

namespace glm_relay {

WeightFile::WeightFile(Descriptor file, const std::string& key, ThreadPool& pool)
    : file_(std::move(file)), mapping_(MAP_FAILED) {
  struct stat status;
  if (fstat(file_.number(), &status) != 0) throw WeightFileError(std::strerror(errno));
  size_ = static_cast<uint64_t>(status.st_size);
  if (size_ == 0) throw WeightFileError("it is empty");
  mapping_ = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file_.number(), 0);
  if (mapping_ == MAP_FAILED) throw WeightFileError(std::strerror(errno));
  try {
    // A refusal only costs speed.
    madvise(mapping_, size_, MADV_WILLNEED);
    readHeader(key);
    verify(pool);
  } catch (...) {
    munmap(mapping_, size_);
    throw;
  }
}

WeightFile::~WeightFile() { munmap(mapping_, size_); }

void WeightFile::readHeader(const std::string& key) {
  header_ = WeightFileHeader::decode(bytes(), size_);
  if (header_.key != key) throw WeightFileError("it is of other weights");
}

// Reading all of it also brings it into memory before the first token needs it.
void WeightFile::verify(ThreadPool& pool) const {
  struct Piece {
    size_t matrix;
    size_t index;
  };
  const std::vector<MatrixRecord>& matrices = header_.matrices;
  std::vector<Piece> pieces;
  std::vector<std::vector<uint64_t>> sums(matrices.size());
  for (size_t i = 0; i < matrices.size(); i++) {
    sums[i].resize(checksumPieces(matrices[i].bytes));
    for (size_t index = 0; index < sums[i].size(); index++) pieces.push_back({i, index});
  }
  pool.forEach(static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
    const auto [matrix, index] = pieces[i];
    sums[matrix][index] = pieceChecksum(data(matrices[matrix]), matrices[matrix].bytes, index);
  });
  for (size_t i = 0; i < matrices.size(); i++) {
    if (joinedChecksum(sums[i]) != matrices[i].checksum) {
      throw WeightFileError(matrices[i].role + " has another checksum");
    }
  }
}

}  // namespace glm_relay
