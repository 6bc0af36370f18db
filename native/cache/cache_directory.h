// The directory that holds the cached files, shared by all processes of the machine, and bounded: the least
// recently used files go first, and none that a living process has locked.
//
// - A file in use has a shared lock (flock) of its user; an unfinished one has an exclusive lock of its
// writer. The
//   kernel drops both when the process ends in any way, so what is not locked is old or left over.
// - `lock` is held while room is made, so that two processes do not count on the same room.
// - When a file was last used is its time of change.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cache/descriptor.h"

namespace glm_relay {

// Nothing can be kept, and why.
class CacheError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A file that is being written; it is deleted unless it is published.
class UnfinishedFile {
 public:
  UnfinishedFile(Descriptor file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}
  ~UnfinishedFile();
  UnfinishedFile(UnfinishedFile&& other) noexcept = default;

  // Locks it and has the file system set its bytes aside: a full disk is seen here. All throw CacheError.
  void reserve(uint64_t bytes) const;
  void write(const void* data, uint64_t bytes, uint64_t offset) const;
  void sync() const;
  // Gives it its name. The descriptor keeps a shared lock.
  Descriptor publish(const std::string& path);

 private:
  Descriptor file_;
  std::string path_;
};

class CacheDirectory {
 public:
  CacheDirectory(std::string path, uint64_t maxBytes) : path_(std::move(path)), maxBytes_(maxBytes) {}

  const std::string& path() const { return path_; }
  std::string pathOf(const std::string& name) const { return path_ + "/" + name; }

  // A finished file with a shared lock, marked as used; not open when there is none, or when it is being
  // removed. Throws CacheError for one that cannot be read.
  Descriptor find(const std::string& name) const;
  // Makes room and begins a file of `bytes` bytes, which the file system has set aside. Throws CacheError.
  UnfinishedFile begin(const std::string& name, uint64_t bytes) const;

 private:
  Descriptor lock() const;
  void makeRoom(uint64_t bytes) const;

  const std::string path_;
  const uint64_t maxBytes_;
};

}  // namespace glm_relay
