#include "cache/weight_cache.h"

#include <algorithm>
#include <utility>

#include "cache/checksum.h"

namespace glm_relay {

namespace {

// Written between two looks at whether to stop. A multiple of the largest page, so that the page cache can
// use those.
constexpr uint64_t kWriteBytes = 8 << 20;

// The writer was told to stop in the middle of a file.
class Stopped {};

bool same(const WeightFormat& a, const WeightFormat& b) {
  return a.type == b.type && a.groupSize == b.groupSize && a.scales == b.scales;
}

bool isStored(const WeightFormat& format) { return format.type == WeightType::kStored; }

}  // namespace

std::unique_ptr<DeviceMatrix> CachedPart::take(const MatrixRecord& wanted, Backend& backend) {
  if (file_ == nullptr || next_ == file_->matrices().size()) return nullptr;
  const MatrixRecord& record = file_->matrices()[next_++];
  if (record.role != wanted.role || record.n != wanted.n || record.k != wanted.k ||
      record.dtype != wanted.dtype || !same(record.format, wanted.format)) {
    return nullptr;
  }
  return backend.mapMatrix({record.n, record.k, record.dtype, record.format, record.rounding, record.bytes,
                            std::shared_ptr<const uint8_t>(file_, file_->data(record))});
}

void CachedPart::add(MatrixRecord record, const DeviceMatrix& matrix) {
  if (file_ != nullptr) return;
  record.rounding = matrix.rounding;
  record.bytes = matrix.bytes;
  made_.push_back({std::move(record), matrix.packed});
}

WeightCache::WeightCache(const WeightCacheOptions& options, ThreadPool& pool)
    : directory_(options.directory, options.maxBytes),
      keys_(options.fingerprint),
      pool_(pool),
      writer_(std::make_unique<Driver>()) {}

void WeightCache::close() {
  stopping_ = true;
  writer_.reset();
}

std::unique_ptr<CachedPart> WeightCache::openLayer(const LayerTensors& tensors, int layer,
                                                   const WeightFormat& format) {
  if (isStored(format)) return nullptr;
  return open("layer-" + std::to_string(layer), [&] { return keys_.layer(tensors, format); });
}

std::unique_ptr<CachedPart> WeightCache::openHead(const StageConfig& config) {
  if (isStored(config.weights) && isStored(config.headWeights)) return nullptr;
  return open("head", [&] { return keys_.head(config.head, config.shape.tokenCount, config.headWeights); });
}

std::unique_ptr<CachedPart> WeightCache::open(const std::string& part,
                                              const std::function<std::string()>& key) {
  std::string text;
  try {
    text = key();
  } catch (const std::runtime_error&) {
    // The load meets the file that cannot be looked at, and names the tensor.
    return nullptr;
  }
  const std::string name = cacheName(part, text);
  std::shared_ptr<const WeightFile> file = find(name, text);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (file == nullptr) {
    report_.misses++;
  } else {
    report_.hits++;
    for (const MatrixRecord& matrix : file->matrices()) report_.mappedBytes += matrix.bytes;
  }
  return std::make_unique<CachedPart>(name, std::move(text), std::move(file));
}

std::shared_ptr<const WeightFile> WeightCache::find(const std::string& name, const std::string& key) {
  if (!reads_) return nullptr;
  try {
    Descriptor file = directory_.find(name);
    if (!file.isOpen()) return nullptr;
    return std::make_shared<const WeightFile>(std::move(file), key, pool_);
  } catch (const CacheError& error) {
    reads_ = false;
    writes_ = false;
    warn(std::string("it is not used: ") + error.what());
  } catch (const WeightFileError& error) {
    const std::string path = directory_.pathOf(name);
    warn(path + " is not used and made anew: " + error.what());
    unlink(path.c_str());
  }
  return nullptr;
}

void WeightCache::keep(std::unique_ptr<CachedPart> part) {
  if (part == nullptr || part->file_ != nullptr) return;
  for (const CachedPart::Made& made : part->made_) {
    if (made.packed == nullptr) return;
  }
  const std::shared_ptr<CachedPart> shared = std::move(part);
  writer_->post([this, shared] { write(*shared); });
}

void WeightCache::write(CachedPart& part) {
  if (stopping_ || !writes_) return;
  try {
    WeightFileHeader header;
    header.key = part.key_;
    for (const CachedPart::Made& made : part.made_) header.matrices.push_back(made.record);
    header.place();
    UnfinishedFile file = directory_.begin(part.name_, header.fileBytes);
    const uint64_t bytes = writeMatrices(part, file, header);
    file.sync();
    const std::vector<uint8_t> encoded = header.encode();
    file.write(encoded.data(), encoded.size(), 0);
    file.sync();
    kept_.push_back(file.publish(directory_.pathOf(part.name_)));
    const std::lock_guard<std::mutex> lock(mutex_);
    report_.filesWritten++;
    report_.writtenBytes += bytes;
  } catch (const Stopped&) {
  } catch (const CacheError& error) {
    writes_ = false;
    warn(std::string("nothing more is kept: ") + error.what());
  }
}

// Fills in the checksums of the header's matrices.
uint64_t WeightCache::writeMatrices(CachedPart& part, const UnfinishedFile& file,
                                    WeightFileHeader& header) const {
  uint64_t all = 0;
  for (size_t i = 0; i < part.made_.size(); i++) {
    const uint8_t* data = part.made_[i].packed.get();
    MatrixRecord& record = header.matrices[i];
    std::vector<uint64_t> sums(checksumPieces(record.bytes));
    for (size_t piece = 0; piece < sums.size(); piece++)
      sums[piece] = pieceChecksum(data, record.bytes, piece);
    record.checksum = joinedChecksum(sums);
    for (uint64_t begin = 0; begin < record.bytes; begin += kWriteBytes) {
      if (stopping_) throw Stopped();
      file.write(data + begin, std::min(kWriteBytes, record.bytes - begin), record.offset + begin);
    }
    all += record.bytes;
  }
  return all;
}

void WeightCache::warn(const std::string& what) {
  const std::lock_guard<std::mutex> lock(mutex_);
  report_.warnings.push_back(what);
}

WeightCacheReport WeightCache::report() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return report_;
}

}  // namespace glm_relay
