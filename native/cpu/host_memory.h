// Zeroed anonymous memory, page-aligned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glm_relay {

class HostMemory {
 public:
  enum Use {
    kLazy,      // a page costs nothing until it is written
    kReady,     // all pages are there at once: none has to be found in the middle of a step
    kStreamed,  // lazy; read from end to end, so huge pages are asked for
  };
  // Throws std::bad_alloc.
  HostMemory(uint64_t bytes, Use use);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  uint8_t* data() const { return static_cast<uint8_t*>(mapping_); }
  float* floats() const { return static_cast<float*>(mapping_); }

 private:
  void* mapping_ = nullptr;
  size_t bytes_;
};

}  // namespace glm_relay
