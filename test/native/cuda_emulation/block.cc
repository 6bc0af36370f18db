#include "block.h"

#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "fiber.h"

namespace glm_relay::emulation {

thread_local Thread* thread = nullptr;

namespace {

// What a thread that does not run waits for.
enum class Wait : uint8_t { kNothing, kBlock, kWarp, kOver };

// How often another thread is drawn in place of one of a warp that falls behind.
constexpr int kRedraws = 8;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct FiberState {
  Fiber fiber;
  Thread thread;
  Wait wait = Wait::kNothing;
  // Of a warp's operation.
  WarpOperation apply = nullptr;
  void* brought = nullptr;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> committed;
};

void makeCopy(const Copy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); }

void nothing(void**) {}

// The blocks of one host thread, which uses it for one grid after the other.
class Scheduler {
 public:
  void run(Index grid, Index block, size_t sharedBytes, const std::function<void()>& kernel);

  bool coin() { return (random() & 1) != 0; }

  void arriveAtBlock() {
    current_->wait = Wait::kBlock;
    if (++atBlock_ < count_) return leave();
    atBlock_ = 0;
    for (int i = 0; i < count_; i++) wake(i);
    leave();
  }

  void arriveAtWarp(WarpOperation apply, void* mine) {
    current_->wait = Wait::kWarp;
    current_->apply = apply;
    current_->brought = mine;
    const int first = static_cast<int>(currentIndex_) / kWarpSize * kWarpSize;
    if (++atWarp_[first / kWarpSize] < kWarpSize) return leave();
    atWarp_[first / kWarpSize] = 0;
    void* brought[kWarpSize];
    for (int lane = 0; lane < kWarpSize; lane++) {
      FiberState& state = *fibers_[first + lane];
      if (state.apply != apply) return fail("the lanes of a warp arrived with different operations");
      brought[lane] = state.brought;
    }
    apply(brought);
    for (int lane = 0; lane < kWarpSize; lane++) wake(first + lane);
    leave();
  }

  void copyLater(const Copy& copy) {
    // At once or when it is waited for: a kernel must be right in both cases.
    if (coin()) {
      makeCopy(copy);
    } else {
      current_->uncommitted.push_back(copy);
    }
  }
  void commitCopies() {
    current_->committed.push_back(std::move(current_->uncommitted));
    current_->uncommitted.clear();
  }
  void waitCopies(int pending) {
    auto& committed = current_->committed;
    while (static_cast<int>(committed.size()) > pending) {
      for (const Copy& copy : committed.front()) makeCopy(copy);
      committed.pop_front();
    }
  }

 private:
  void runBlock();
  void leave() { current_->fiber.suspend(); }
  void wake(int index) {
    fibers_[index]->wait = Wait::kNothing;
    ready_.push_back(index);
  }
  // The block is given up: no fiber of it runs again.
  void fail(const char* what) {
    failure_ = what;
    leave();
  }
  uint64_t random() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }
  static void enter(void* self) {
    auto* scheduler = static_cast<Scheduler*>(self);
    (*scheduler->kernel_)();
    if (!scheduler->current_->thread.hasAwaited) {
      scheduler->failure_ = "a thread does not wait for the kernels before its own";
    }
    scheduler->current_->wait = Wait::kOver;
    scheduler->over_++;
  }

  std::vector<std::unique_ptr<FiberState>> fibers_;
  std::vector<int> ready_;
  std::vector<int> atWarp_;
  std::vector<uint8_t> shared_;
  const std::function<void()>* kernel_ = nullptr;
  FiberState* current_ = nullptr;
  int currentIndex_ = 0;
  int count_ = 0;
  int atBlock_ = 0;
  int over_ = 0;
  const char* failure_ = nullptr;
  uint64_t grids_ = 0;
  uint64_t random_ = 0;
};

void Scheduler::run(Index grid, Index block, size_t sharedBytes, const std::function<void()>& kernel) {
  count_ = static_cast<int>(block.x * block.y * block.z);
  if (count_ % kWarpSize != 0) throw KernelError("a block is not made of whole warps");
  while (static_cast<int>(fibers_.size()) < count_) fibers_.push_back(std::make_unique<FiberState>());
  // Another order for every grid of a seed.
  random_ = (settings().seed + ++grids_) * 0x9e3779b97f4a7c15u | 1u;
  kernel_ = &kernel;
  // Aligned as CUDA's is. Behind its end begins what the next allocation of the host may hold.
  shared_.resize(sharedBytes + 128);
  auto* shared =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared_.data()) + 127) & ~uintptr_t{127});
  for (unsigned int z = 0; z < grid.z; z++) {
    for (unsigned int y = 0; y < grid.y; y++) {
      for (unsigned int x = 0; x < grid.x; x++) {
        std::memset(shared, 0xff, sharedBytes);
        for (int i = 0; i < count_; i++) {
          const unsigned int at = static_cast<unsigned int>(i);
          fibers_[i]->thread = {{at % block.x, at / block.x % block.y, at / block.x / block.y},
                                {x, y, z},
                                block,
                                grid,
                                shared,
                                false};
        }
        runBlock();
      }
    }
  }
}

void Scheduler::runBlock() {
  failure_ = nullptr;
  atBlock_ = 0;
  over_ = 0;
  atWarp_.assign(count_ / kWarpSize, 0);
  ready_.clear();
  for (int i = 0; i < count_; i++) {
    FiberState& state = *fibers_[i];
    state.uncommitted.clear();
    state.committed.clear();
    state.fiber.reset(enter, this);
    wake(i);
  }
  // In every second block one warp falls behind the others, as far as barriers let it.
  const int lateWarp = static_cast<int>(random() % (2 * atWarp_.size()));
  while (!ready_.empty() && failure_ == nullptr) {
    size_t at = random() % ready_.size();
    for (int i = 0; i < kRedraws && ready_[at] / kWarpSize == lateWarp; i++) at = random() % ready_.size();
    currentIndex_ = ready_[at];
    ready_[at] = ready_.back();
    ready_.pop_back();
    current_ = fibers_[currentIndex_].get();
    thread = &current_->thread;
    current_->fiber.resume();
  }
  if (failure_ != nullptr) throw KernelError(failure_);
  if (over_ != count_) {
    throw KernelError(std::to_string(over_) + " of " + std::to_string(count_) +
                      " threads of a block ended while the others wait at a barrier");
  }
}

Scheduler& scheduler() {
  thread_local Scheduler instance;
  return instance;
}

// False: the barrier here is to be passed.
bool standsHere(const char* file, int line) {
  const Settings& all = settings();
  if (all.passed != nullptr) all.passed->insert({file, line});
  return all.skipped.second != line || all.skipped.first != file;
}

}  // namespace

Settings& settings() {
  // Of a thread, because each stage's driver runs grids of its own.
  thread_local Settings instance;
  return instance;
}

void runGrid(Index grid, Index block, size_t sharedBytes, const std::function<void()>& kernel) {
  scheduler().run(grid, block, sharedBytes, kernel);
}

void blockBarrier(const char* file, int line) {
  if (standsHere(file, line)) scheduler().arriveAtBlock();
}

void warpBarrier(const char* file, int line) {
  if (standsHere(file, line)) scheduler().arriveAtWarp(nothing, nullptr);
}

void warpOperation(WarpOperation apply, void* mine) { scheduler().arriveAtWarp(apply, mine); }

void copyLater(void* to, const void* from, size_t bytes) { scheduler().copyLater({to, from, bytes}); }
void commitCopies() { scheduler().commitCopies(); }
void waitCopies(int pending) {
  if (!settings().skipWaits) scheduler().waitCopies(pending);
}

}  // namespace glm_relay::emulation
