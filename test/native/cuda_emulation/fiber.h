// Threads of a GPU block as fibers: each has a stack of its own, and one runs until it gives up the
// processor by itself. Nothing here is known to the operating system, so a switch costs some nanoseconds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glm_relay::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Begins anew: the next resume() enters entry(argument). What the fiber was in
  // the middle of is forgotten, without destructors.
  void reset(void (*entry)(void* argument), void* argument);
  // From the scheduler: runs the fiber until it calls suspend() or its entry has returned.
  void resume();
  // From the fiber: back to the scheduler.
  void suspend();

 private:
  static void enter();

  struct Context;
  uint8_t* stack_;
  Context* context_;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace glm_relay::emulation
