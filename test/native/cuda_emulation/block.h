// One block of a kernel on the host: its threads are fibers, switched at barriers and at the operations of a
// warp, in an order that is drawn anew at every switch. So a thread may run far ahead of its neighbours, up
// to the next barrier, and a barrier that is missing shows. Shared memory begins as NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace glm_relay::emulation {

constexpr int kWarpSize = 32;

struct Index {
  unsigned int x = 1;
  unsigned int y = 1;
  unsigned int z = 1;
};

// What a kernel did that a GPU does not allow.
class KernelError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in the source a barrier stands.
using Site = std::pair<std::string, int>;

// Of the blocks that the calling thread of the host runs.
struct Settings {
  uint64_t seed = 1;
  // The barrier here is passed as if it did not stand in the source; no file: none is.
  Site skipped;
  // Copies are not waited for.
  bool skipWaits = false;
  // Null: nobody wants to know which barriers there are.
  std::set<Site>* passed = nullptr;
};
Settings& settings();

// The thread at hand, as the kernel's code sees it.
struct Thread {
  Index threadIndex;
  Index blockIndex;
  Index blockSize;
  Index gridSize;
  uint8_t* shared;
  // For the kernels in front of its own (awaitPrevious).
  bool hasAwaited;
};
extern thread_local Thread* thread;

// Runs every block of a grid, one after the other. Throws KernelError.
void runGrid(Index grid, Index block, size_t sharedBytes, const std::function<void()>& kernel);

// From a kernel's thread. All threads of the block arrive before one goes on.
void blockBarrier(const char* file, int line);
void warpBarrier(const char* file, int line);
// All lanes of the warp arrive with the same operation, and `apply` sees what every lane has brought.
using WarpOperation = void (*)(void** ofLane);
void warpOperation(WarpOperation apply, void* mine);

// Copies that a thread has asked for: each happens at some time until it is waited for.
void copyLater(void* to, const void* from, size_t bytes);
void commitCopies();
// Until at most `pending` of the groups committed by this thread are still under way.
void waitCopies(int pending);

}  // namespace glm_relay::emulation
