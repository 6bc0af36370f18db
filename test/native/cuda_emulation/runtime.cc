#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "device_emulation.h"

struct EmulatedGraph {
  std::vector<std::function<void()>> work;
};

struct EmulatedStream {
  std::deque<std::function<void()>> work;
  EmulatedGraph* captured = nullptr;

  void add(std::function<void()> item) {
    if (captured != nullptr) {
      captured->work.push_back(std::move(item));
    } else {
      work.push_back(std::move(item));
    }
  }
};

struct EmulatedEvent {
  cudaStream_t stream = nullptr;
};

namespace {

// As many as cards of compute capability 8.6 and 8.9 offer, the least of those that copy asynchronously.
constexpr size_t kSharedLimit = 101376;
// What a GPU has where GLM_RELAY_EMULATED_GPU_BYTES names no other number, and how many there are where
// GLM_RELAY_EMULATED_GPUS names none.
constexpr size_t kDeviceBytes = size_t{8} << 30;
constexpr int kDeviceCount = 1;
constexpr int kMostDevices = 16;
// Kernels may count on this alignment of an allocation.
constexpr size_t kAlignment = 256;
// CUDA takes memory of a GPU in pages of this size; allocations of up to half of one share pages, where each
// begins at a multiple of kSmallAlignment.
constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kSmallAlignment = 512;

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// What an allocation takes of its GPU: pages of its own, or a part of a shared one.
struct Mapping {
  void* base;
  size_t mapped;
  int device;
  size_t pageBytes;  // of its own pages; 0: it shares one
  size_t sharedPage;
  size_t smallBytes;
};

struct SharedPage {
  size_t used = 0;  // from its begin; what is given back within it is not used again before all of it is
  int allocations = 0;
};

struct DevicePages {
  size_t ownBytes = 0;
  std::vector<SharedPage> shared;

  size_t used() const {
    size_t bytes = ownBytes;
    for (const SharedPage& page : shared) bytes += page.allocations > 0 ? kPage : 0;
    return bytes;
  }
  // The first shared page with room, or a new one.
  size_t pageFor(size_t bytes) {
    for (size_t i = 0; i < shared.size(); i++) {
      if (shared[i].used + bytes <= kPage) return i;
    }
    shared.push_back({});
    return shared.size() - 1;
  }
};

std::mutex mutex;
std::map<void*, Mapping> deviceMemory;
std::map<void*, size_t> pinnedMemory;
DevicePages pagesOf[kMostDevices];
thread_local int currentDevice = 0;

size_t fromEnvironment(const char* name, size_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::strtoull(text, nullptr, 10);
}

size_t deviceBytes() { return fromEnvironment("GLM_RELAY_EMULATED_GPU_BYTES", kDeviceBytes); }

int deviceCount() {
  return std::min(static_cast<int>(fromEnvironment("GLM_RELAY_EMULATED_GPUS", kDeviceCount)), kMostDevices);
}

// Kernels that have run so far, in all streams, those of graphs each time.
std::atomic<int64_t> launches{0};
// A kernel has failed as on a GPU that is gone: everything fails from then on, in every thread.
std::atomic<bool> lost{false};
// Of the calling thread, as CUDA's; kept until cudaGetLastError.
thread_local std::string failure;
thread_local cudaError_t lastError = cudaSuccess;

cudaError_t failed(cudaError_t error, std::string what) {
  failure = std::move(what);
  lastError = error;
  return error;
}

void giveBack(const Mapping& mapping) {
  DevicePages& pages = pagesOf[mapping.device];
  pages.ownBytes -= mapping.pageBytes;
  if (mapping.smallBytes == 0) return;
  SharedPage& page = pages.shared[mapping.sharedPage];
  if (--page.allocations == 0) page.used = 0;
}

cudaError_t gone() { return failed(cudaErrorLaunchFailure, "unspecified launch failure"); }

// The kernel, counted from 1, with which the GPU is lost; 0: none.
int64_t fatalLaunch() {
  static const int64_t number = [] {
    const char* value = std::getenv("GLM_RELAY_EMULATED_GPU_FAILS_AT");
    return value == nullptr ? int64_t{0} : static_cast<int64_t>(std::atoll(value));
  }();
  return number;
}

bool isPinned(const void* memory) {
  const std::lock_guard<std::mutex> lock(mutex);
  auto next = pinnedMemory.upper_bound(const_cast<void*>(memory));
  if (next == pinnedMemory.begin()) return false;
  --next;
  return static_cast<const uint8_t*>(memory) < static_cast<uint8_t*>(next->first) + next->second;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return failure.c_str();
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = lastError;
  lastError = cudaSuccess;
  return error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = deviceCount();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  currentDevice = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = currentDevice;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  if (lost) return gone();
  std::snprintf(properties->name, sizeof(properties->name), "emulated");
  properties->totalGlobalMem = deviceBytes();
  properties->major = 8;
  properties->minor = 6;
  properties->sharedMemPerBlockOptin = kSharedLimit;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  if (lost) return gone();
  const std::lock_guard<std::mutex> lock(mutex);
  *total = deviceBytes();
  *available = *total - std::min(*total, pagesOf[currentDevice].used());
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (lost) return gone();
  const std::lock_guard<std::mutex> lock(mutex);
  DevicePages& pages = pagesOf[currentDevice];
  Mapping mapping = {nullptr, 0, currentDevice, 0, 0, 0};
  if (bytes > kPage / 2) {
    mapping.pageBytes = rounded(bytes, kPage);
    pages.ownBytes += mapping.pageBytes;
  } else {
    mapping.smallBytes = rounded(std::max(bytes, size_t{1}), kSmallAlignment);
    mapping.sharedPage = pages.pageFor(mapping.smallBytes);
    pages.shared[mapping.sharedPage].used += mapping.smallBytes;
    pages.shared[mapping.sharedPage].allocations++;
  }
  if (pages.used() > deviceBytes()) {
    giveBack(mapping);
    return failed(cudaErrorMemoryAllocation, "out of memory");
  }
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t used = rounded(bytes, kAlignment);
  const size_t mapped = rounded(used, page) + page;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    giveBack(mapping);
    return failed(cudaErrorMemoryAllocation, "out of memory");
  }
  uint8_t* end = static_cast<uint8_t*>(base) + mapped - page;
  mprotect(end, page, PROT_NONE);
  *memory = end - used;
  std::memset(*memory, 0xff, used);
  mapping.base = base;
  mapping.mapped = mapped;
  deviceMemory[*memory] = mapping;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = deviceMemory.find(memory);
  munmap(found->second.base, found->second.mapped);
  giveBack(found->second);
  deviceMemory.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return failed(cudaErrorMemoryAllocation, "out of memory");
  const std::lock_guard<std::mutex> lock(mutex);
  pinnedMemory[*memory] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(mutex);
  pinnedMemory.erase(memory);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  if (lost) return gone();
  *stream = new EmulatedStream();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (lost) return gone();
  if (stream->captured != nullptr) {
    return failed(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing");
  }
  try {
    while (!stream->work.empty()) {
      const std::function<void()> next = std::move(stream->work.front());
      stream->work.pop_front();
      next();
    }
  } catch (const glm_relay::emulation::KernelError& error) {
    stream->work.clear();
    return failed(cudaErrorLaunchFailure, error.what());
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (lost) return gone();
  if (kind == cudaMemcpyHostToDevice && !isPinned(from)) {
    const auto* read = static_cast<const uint8_t*>(from);
    std::vector<uint8_t> staged(read, read + bytes);
    stream->add([to, staged = std::move(staged)] { std::memcpy(to, staged.data(), staged.size()); });
    return cudaSuccess;
  }
  stream->add([=] { std::memmove(to, from, bytes); });
  return kind == cudaMemcpyDeviceToHost && !isPinned(to) ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (lost) return gone();
  stream->add([=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int) {
  *event = new EmulatedEvent();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (lost) return gone();
  event->stream = stream;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->stream == nullptr ? cudaSuccess : cudaStreamSynchronize(event->stream);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (lost) return gone();
  stream->captured = new EmulatedGraph();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->captured;
  stream->captured = nullptr;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  *made = new EmulatedGraph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (lost) return gone();
  for (const auto& item : graph->work) stream->add(item);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

namespace glm_relay::emulation {

void enqueueGrid(cudaStream_t stream, Index grid, Index block, size_t sharedBytes,
                 std::function<void()> kernel) {
  checkSharedLimit(sharedBytes);
  stream->add([=, kernel = std::move(kernel)] {
    if (++launches == fatalLaunch()) {
      lost = true;
      throw KernelError("unspecified launch failure");
    }
    runGrid(grid, block, sharedBytes, kernel);
  });
}

void checkSharedLimit(size_t bytes) {
  if (bytes > kSharedLimit) throw KernelError("a block asks for more shared memory than a GPU has");
}

}  // namespace glm_relay::emulation

namespace glm_relay::cuda {

const float* halfTable() {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (uint32_t bits = 0; bits < 65536; bits++) values[bits] = halfToFloat(static_cast<uint16_t>(bits));
    return values;
  }();
  return table.data();
}

}  // namespace glm_relay::cuda
