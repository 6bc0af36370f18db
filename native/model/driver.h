// The thread that drives one stage: jobs run one after the other in the order they were posted,
// away from Node's event loop and from libuv's pool.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace glm_relay {

class Driver {
 public:
  Driver();
  // Runs what was posted, then ends the thread.
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  void post(std::function<void()> job);

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable posted_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace glm_relay
