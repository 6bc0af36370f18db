// What a cached file is valid for, as text: every byte that its matrices are made of and what is made of
// them. Not the kernel variant, the threads or the cut into stages, of which they are no function.
#pragma once

#include <map>
#include <string>

#include "model/plan.h"

namespace glm_relay {

class CacheKeys {
 public:
  // `fingerprint`: of the whole checkpoint, by its headers and samples of its tensors.
  explicit CacheKeys(std::string fingerprint) : fingerprint_(std::move(fingerprint)) {}

  // Throws std::runtime_error for a file of weights that cannot be looked at.
  std::string layer(const LayerTensors& tensors, const WeightFormat& format);
  // Of the first `rows` rows.
  std::string head(const TensorParts& head, int rows, const WeightFormat& format);

 private:
  std::string begin() const;
  void addMatrix(std::string& key, const TensorParts& parts, const WeightFormat& format);
  const std::string& identityOf(const std::string& file);

  const std::string fingerprint_;
  std::map<std::string, std::string> identities_;  // by path
};

// A file's name: short, and another one for another key.
std::string cacheName(const std::string& part, const std::string& key);

}  // namespace glm_relay
