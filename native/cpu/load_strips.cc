#include "cpu/load_strips.h"

#include <algorithm>
#include <mutex>

namespace glm_relay {

namespace {

// Of the file, between two times of letting go.
constexpr int64_t kSliceBytes = 16 << 20;

}  // namespace

void loadStrips(const HostMatrix& matrix, ThreadPool& pool,
                const std::function<void(int strip, int thread)>& strip) {
  const int strips = (matrix.n + kStripRows - 1) / kStripRows;
  const int64_t stripBytes = kStripRows * static_cast<int64_t>(matrix.rowBytes());
  const int slice = static_cast<int>(std::max<int64_t>(pool.threads(), kSliceBytes / stripBytes));
  std::mutex mutex;
  int failedStrip = strips;
  std::exception_ptr failure;

  for (int begin = 0; begin < strips && !failure; begin += slice) {
    const int end = std::min(strips, begin + slice);
    pool.forEach(end - begin, [&](int64_t i, int thread) {
      const int at = begin + static_cast<int>(i);
      try {
        strip(at, thread);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (at < failedStrip) failure = std::current_exception();
        failedStrip = std::min(failedStrip, at);
      }
    });
    if (matrix.consumed) matrix.consumed(std::min(matrix.n, end * kStripRows));
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace glm_relay
