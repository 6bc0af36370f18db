// Keeps the packed and rounded matrices of a stage in files, one per layer and one for the head, so that the
// next load maps them instead of making them again. Whatever goes wrong here costs speed and a warning, never
// the load.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cache/cache_directory.h"
#include "cache/cache_key.h"
#include "cache/weight_file.h"
#include "model/driver.h"

namespace glm_relay {

struct WeightCacheOptions {
  std::string directory;
  uint64_t maxBytes;  // of all files in the directory
  std::string fingerprint;
};

struct WeightCacheReport {
  int hits = 0;
  int misses = 0;
  uint64_t mappedBytes = 0;  // of matrices that lie in cached files
  int filesWritten = 0;
  uint64_t writtenBytes = 0;
  std::vector<std::string> warnings;
};

// The matrices of one layer or of the head, in the order of loading: taken from a file, or noted for one.
class CachedPart {
 public:
  CachedPart(std::string name, std::string key, std::shared_ptr<const WeightFile> file)
      : name_(std::move(name)), key_(std::move(key)), file_(std::move(file)) {}

  // The next matrix; null when there is no file, or when another one stands there. `wanted` says role, n, k,
  // dtype and format.
  std::unique_ptr<DeviceMatrix> take(const MatrixRecord& wanted, Backend& backend);
  // Notes a matrix that was made.
  void add(MatrixRecord record, const DeviceMatrix& matrix);

 private:
  friend class WeightCache;
  struct Made {
    MatrixRecord record;
    std::shared_ptr<const uint8_t> packed;
  };
  const std::string name_;
  const std::string key_;
  const std::shared_ptr<const WeightFile> file_;  // null: a miss
  size_t next_ = 0;
  std::vector<Made> made_;
};

class WeightCache {
 public:
  // `pool` outlives this and is used in open() only.
  WeightCache(const WeightCacheOptions& options, ThreadPool& pool);
  ~WeightCache() { close(); }
  // Stops writing; what is unfinished is gone. Nothing is kept after that.
  void close();

  // Null where nothing is kept: matrices as they are stored would be a copy of the checkpoint.
  std::unique_ptr<CachedPart> openLayer(const LayerTensors& tensors, int layer, const WeightFormat& format);
  std::unique_ptr<CachedPart> openHead(const StageConfig& config);
  // Writes what the part has noted, beside everything else.
  void keep(std::unique_ptr<CachedPart> part);
  // Before close(): calls `done` on the writing thread when everything asked for so far has been written, or
  // will not be.
  void whenWritten(std::function<void()> done) { writer_->post(std::move(done)); }

  WeightCacheReport report() const;

 private:
  std::unique_ptr<CachedPart> open(const std::string& part, const std::function<std::string()>& key);
  std::shared_ptr<const WeightFile> find(const std::string& name, const std::string& key);
  void write(CachedPart& part);
  uint64_t writeMatrices(CachedPart& part, const UnfinishedFile& file, WeightFileHeader& header) const;
  void warn(const std::string& what);

  const CacheDirectory directory_;
  CacheKeys keys_;
  ThreadPool& pool_;
  std::atomic<bool> stopping_{false};
  // Whoever finds the directory unusable says so once, and it is left alone from then on.
  std::atomic<bool> reads_{true};
  std::atomic<bool> writes_{true};
  std::vector<Descriptor> kept_;  // writing thread only: locks of the files that this stage has written
  mutable std::mutex mutex_;
  WeightCacheReport report_;

  std::unique_ptr<Driver> writer_;  // its thread uses the members above
};

}  // namespace glm_relay
