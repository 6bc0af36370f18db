// Zeroed anonymous memory, page-aligned; a page costs nothing until it is written.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glm_relay {

class HostMemory {
 public:
  // Throws std::bad_alloc. `streamed` memory, read from end to end, asks for huge pages.
  HostMemory(uint64_t bytes, bool streamed);
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
