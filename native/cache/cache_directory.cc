#include "cache/cache_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

namespace glm_relay {

namespace {

// The disk also holds what is not ours, such as the append-only file of Redis: so much of it stays free.
constexpr uint64_t kFreeBytesKept = 1ull << 30;
// Making room takes milliseconds; whoever holds the lock for so long has stopped.
constexpr auto kLockLimit = std::chrono::seconds(5);
constexpr auto kLockPause = std::chrono::milliseconds(10);

[[noreturn]] void fail(const std::string& what) { throw CacheError(what + ": " + std::strerror(errno)); }

bool endsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

struct Entry {
  std::string path;
  uint64_t bytes;
  struct timespec used;
  bool finished;
};

bool usedBefore(const Entry& a, const Entry& b) {
  if (a.used.tv_sec != b.used.tv_sec) return a.used.tv_sec < b.used.tv_sec;
  return a.used.tv_nsec < b.used.tv_nsec;
}

// The finished files and the unfinished ones. What goes meanwhile is left out.
std::vector<Entry> entriesOf(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(directory.c_str()), closedir);
  if (listing == nullptr) fail(directory);
  std::vector<Entry> entries;
  while (const dirent* each = readdir(listing.get())) {
    const std::string name = each->d_name;
    const bool finished = endsWith(name, ".weights");
    if (!finished && !endsWith(name, ".unfinished")) continue;
    const std::string path = directory + "/" + name;
    struct stat status;
    if (lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    entries.push_back({path, static_cast<uint64_t>(status.st_size), status.st_mtim, finished});
  }
  return entries;
}

// Deletes the file unless a living process uses it.
bool removeUnused(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!file.isOpen() || flock(file.number(), LOCK_EX | LOCK_NB) != 0) return false;
  return unlink(path.c_str()) == 0;
}

}  // namespace

UnfinishedFile::~UnfinishedFile() {
  if (file_.isOpen()) unlink(path_.c_str());
}

void UnfinishedFile::reserve(uint64_t bytes) const {
  if (flock(file_.number(), LOCK_EX | LOCK_NB) != 0) fail(path_);
  errno = posix_fallocate(file_.number(), 0, static_cast<off_t>(bytes));
  if (errno != 0) fail(path_);
}

void UnfinishedFile::write(const void* data, uint64_t bytes, uint64_t offset) const {
  const auto* from = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t count = pwrite(file_.number(), from, bytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(path_);
    from += count;
    offset += count;
    bytes -= count;
  }
}

void UnfinishedFile::sync() const {
  if (fsync(file_.number()) != 0) fail(path_);
}

Descriptor UnfinishedFile::publish(const std::string& path) {
  if (flock(file_.number(), LOCK_SH | LOCK_NB) != 0 || rename(path_.c_str(), path.c_str()) != 0) fail(path);
  Descriptor file = std::move(file_);
  const std::string directory = path.substr(0, path.rfind('/'));
  const Descriptor folder(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Without it a loss of power may cost the name, and then the file is made again.
  if (folder.isOpen()) fsync(folder.number());
  return file;
}

Descriptor CacheDirectory::find(const std::string& name) const {
  const std::string path = pathOf(name);
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file.isOpen()) {
    if (errno == ENOENT || errno == ENOTDIR) return Descriptor();
    fail(path);
  }
  if (flock(file.number(), LOCK_SH | LOCK_NB) != 0) return Descriptor();
  // In a directory that cannot be written nothing is removed either.
  futimens(file.number(), nullptr);
  return file;
}

UnfinishedFile CacheDirectory::begin(const std::string& name, uint64_t bytes) const {
  std::error_code error;
  std::filesystem::create_directories(path_, error);
  if (error) throw CacheError(path_ + ": " + error.message());
  const Descriptor held = lock();
  makeRoom(bytes);
  static std::atomic<uint32_t> count{0};
  const std::string path =
      pathOf(name) + "." + std::to_string(getpid()) + "-" + std::to_string(count++) + ".unfinished";
  Descriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.isOpen()) fail(path);
  UnfinishedFile unfinished(std::move(file), path);
  unfinished.reserve(bytes);
  return unfinished;
}

Descriptor CacheDirectory::lock() const {
  const std::string path = pathOf("lock");
  Descriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file.isOpen()) fail(path);
  const auto end = std::chrono::steady_clock::now() + kLockLimit;
  while (flock(file.number(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) fail(path);
    if (std::chrono::steady_clock::now() > end) throw CacheError(path + " is held by another process");
    std::this_thread::sleep_for(kLockPause);
  }
  return file;
}

void CacheDirectory::makeRoom(uint64_t bytes) const {
  std::vector<Entry> entries = entriesOf(path_);
  std::sort(entries.begin(), entries.end(), usedBefore);
  uint64_t used = 0;
  for (const Entry& entry : entries) {
    // Its writer is dead, or else has it locked.
    const bool leftOver = !entry.finished && removeUnused(entry.path);
    if (!leftOver) used += entry.bytes;
  }
  struct statvfs disk;
  if (statvfs(path_.c_str(), &disk) != 0) fail(path_);
  uint64_t room = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  const auto fits = [&] { return used + bytes <= maxBytes_ && room >= bytes + kFreeBytesKept; };
  for (size_t i = 0; i < entries.size() && !fits(); i++) {
    if (!entries[i].finished || !removeUnused(entries[i].path)) continue;
    used -= entries[i].bytes;
    room += entries[i].bytes;
  }
  if (fits()) return;
  const std::string wanted = std::to_string(bytes) + " bytes more";
  if (used + bytes > maxBytes_) {
    throw CacheError(path_ + " holds " + std::to_string(used) + " bytes that are in use and may hold " +
                     std::to_string(maxBytes_) + ": no room for " + wanted);
  }
  throw CacheError(path_ + ": " + std::to_string(room) + " bytes are free on its disk, of which " +
                   std::to_string(kFreeBytesKept) + " stay free: no room for " + wanted);
}

}  // namespace glm_relay
