// The compute threads of one stage. The caller of forEach is one of them; the others spin for a
// moment after a task list is done, because the next one usually follows within microseconds, and
// then sleep: several stages share the cores of a machine.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace glm_relay {

class ThreadPool {
 public:
  // `progress` goes up with every task done, and outlives the pool. Thread i stays on processor cpus[i], the
  // caller, which is thread 0, on cpus[0]; without `cpus` the system moves them. Throws std::runtime_error
  // for a processor that this process may not use.
  ThreadPool(int threads, std::atomic<uint64_t>& progress, const std::vector<int32_t>& cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs task(i, thread) for every i in [0, count), in no order, thread in [0, threads()); returns
  // when all are done. Only one thread may call it, never from within a task; tasks do not throw.
  using Task = std::function<void(int64_t index, int thread)>;
  void forEach(int64_t count, const Task& task);

 private:
  void work(int thread);
  void bumpProgress() { progress_.fetch_add(1, std::memory_order_relaxed); }
  void takeTasks(const Task& task, int64_t count, int thread);

  std::mutex mutex_;
  std::condition_variable started_;
  std::condition_variable finished_;
  std::atomic<uint64_t> generation_{0};  // goes up when a task list begins
  std::atomic<int> busy_{0};             // workers still in the task list
  const Task* task_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  bool stopping_ = false;
  std::atomic<uint64_t>& progress_;
  std::vector<std::thread> workers_;
};

}  // namespace glm_relay
