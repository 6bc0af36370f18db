#include "cache/cache_key.h"

#include <sys/stat.h>

#include <cerrno>
#include <cinttypes>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "cache/checksum.h"

namespace glm_relay {

namespace {

const char* nameOf(DType dtype) {
  if (dtype == DType::kFloat32) return "float32";
  return dtype == DType::kFloat16 ? "float16" : "bfloat16";
}

std::string nameOf(const WeightFormat& format) {
  if (format.type == WeightType::kStored) return "stored";
  const std::string type = format.type == WeightType::kInt4 ? "int4" : "int8";
  const char* scales = format.scales == ScaleChoice::kSearch ? " search" : " absmax";
  return type + " group " + std::to_string(format.groupSize) + scales;
}

}  // namespace

std::string CacheKeys::layer(const LayerTensors& tensors, const WeightFormat& format) {
  std::string key = begin();
  for (const TensorParts* parts :
       {&tensors.qkvWeight, &tensors.attentionOut, &tensors.ffnUp, &tensors.ffnDown}) {
    addMatrix(key, *parts, format);
  }
  if (tensors.router) addMatrix(key, {tensors.router->weight}, WeightFormat{});
  for (const ExpertTensors& expert : tensors.experts) {
    addMatrix(key, expert.up, format);
    addMatrix(key, expert.down, format);
  }
  return key;
}

std::string CacheKeys::head(const TensorParts& head, int rows, const WeightFormat& format) {
  std::string key = begin() + "rows " + std::to_string(rows) + "\n";
  addMatrix(key, head, format);
  return key;
}

std::string CacheKeys::begin() const {
  return "fingerprint " + fingerprint_ + "\nlayout " + std::to_string(kWeightLayoutVersion) + ", strips of " +
         std::to_string(kStripRows) + " rows, tiles of " + std::to_string(kTileColumns) + " columns by " +
         std::to_string(kQuad) + "\n";
}

void CacheKeys::addMatrix(std::string& key, const TensorParts& parts, const WeightFormat& format) {
  key += parts.front().role + ": " + nameOf(format) + "\n";
  for (const TensorSource& part : parts) {
    key += "  " + std::string(nameOf(part.dtype));
    for (const int size : part.shape) key += " " + std::to_string(size);
    key += " at " + std::to_string(part.byteOffset) + " of " + identityOf(part.file) + "\n";
  }
}

const std::string& CacheKeys::identityOf(const std::string& file) {
  std::string& identity = identities_[file];
  if (!identity.empty()) return identity;
  char path[PATH_MAX];
  struct stat status;
  if (realpath(file.c_str(), path) == nullptr || stat(path, &status) != 0) {
    throw std::runtime_error(file + ": " + std::strerror(errno));
  }
  char figures[128];
  std::snprintf(figures, sizeof(figures), ", %" PRId64 " bytes, inode %" PRIu64 ", changed %" PRId64 ".%09ld",
                static_cast<int64_t>(status.st_size), static_cast<uint64_t>(status.st_ino),
                static_cast<int64_t>(status.st_mtim.tv_sec), static_cast<long>(status.st_mtim.tv_nsec));
  identity = path + std::string(figures);
  return identity;
}

std::string cacheName(const std::string& part, const std::string& key) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(key.data());
  char digits[33];
  std::snprintf(digits, sizeof(digits), "%016" PRIx64 "%016" PRIx64, checksum(bytes, key.size(), 0),
                checksum(bytes, key.size(), 1));
  return part + "-" + digits + ".weights";
}

}  // namespace glm_relay
