#include "cpu/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace glm_relay {

HostMemory::HostMemory(uint64_t bytes, Use use) : bytes_(std::max<uint64_t>(bytes, 1)) {
  const int ready = use == kReady ? MAP_POPULATE : 0;
  mapping_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | ready, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  // A refusal only costs speed.
  if (use == kStreamed) madvise(mapping_, bytes_, MADV_HUGEPAGE);
}

HostMemory::~HostMemory() { munmap(mapping_, bytes_); }

}  // namespace glm_relay
