#include "model/thread_pool.h"

#include <sched.h>

#include <chrono>
#include <stdexcept>
#include <string>

namespace glm_relay {

namespace {

// Longer would burn the cores of a neighbour stage; the wake-up it saves costs about as much.
constexpr std::chrono::microseconds kSpin(50);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `ready` or until the time is up.
template <class Ready>
bool spinUntil(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (!ready()) {
    for (int i = 0; i < 32; i++) relax();
    if (std::chrono::steady_clock::now() >= end) return ready();
  }
  return true;
}

// Before a thread is started that could not be ended from a constructor that throws.
void requireAllowed(const std::vector<int32_t>& cpus) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  for (const int32_t cpu : cpus) {
    if (cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, &allowed)) continue;
    throw std::runtime_error("processor " + std::to_string(cpu) +
                             " to pin a thread to: this process may not use it");
  }
}

void pinThisThread(int32_t cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  // Where it has been taken away meanwhile the thread goes on wherever it may.
  sched_setaffinity(0, sizeof one, &one);
}

}  // namespace

ThreadPool::ThreadPool(int threads, std::atomic<uint64_t>& progress, const std::vector<int32_t>& cpus)
    : progress_(progress) {
  requireAllowed(cpus);
  for (int i = 1; i < threads; i++) {
    const int32_t cpu = cpus.empty() ? -1 : cpus[i];
    workers_.emplace_back([this, i, cpu] {
      if (cpu >= 0) pinThisThread(cpu);
      work(i);
    });
  }
  if (!cpus.empty()) pinThisThread(cpus[0]);
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1);
  }
  started_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::forEach(int64_t count, const Task& task) {
  if (workers_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; i++) {
      task(i, 0);
      bumpProgress();
    }
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    task_ = &task;
    count_ = count;
    next_.store(0);
    busy_.store(static_cast<int>(workers_.size()));
    generation_.fetch_add(1);
  }
  started_.notify_all();
  takeTasks(task, count, 0);
  if (spinUntil([this] { return busy_.load() == 0; })) return;
  std::unique_lock<std::mutex> lock(mutex_);
  finished_.wait(lock, [this] { return busy_.load() == 0; });
}

void ThreadPool::takeTasks(const Task& task, int64_t count, int thread) {
  for (int64_t i = next_.fetch_add(1); i < count; i = next_.fetch_add(1)) {
    task(i, thread);
    bumpProgress();
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    spinUntil([&] { return generation_.load() != seen; });
    const Task* task;
    int64_t count;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      started_.wait(lock, [&] { return generation_.load() != seen; });
      if (stopping_) return;
      seen = generation_.load();
      task = task_;
      count = count_;
    }
    takeTasks(*task, count, thread);
    if (busy_.fetch_sub(1) == 1) {
      // Under the lock, so that the caller cannot fall asleep between its look and this wake-up.
      std::lock_guard<std::mutex> lock(mutex_);
      finished_.notify_one();
    }
  }
}

}  // namespace glm_relay
