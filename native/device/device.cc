#include "device/device.h"

#include "cpu/cpu_backend.h"
#include "device/cuda_library.h"

namespace glm_relay {

std::unique_ptr<Backend> createBackend(const DeviceChoice& device, const KernelTable& kernels,
                                       ThreadPool& pool, std::atomic<uint64_t>& progress) {
  if (!device) return createCpuBackend(kernels, pool);
  return openCudaLibrary(device->library).create({device->index, device->turing, &kernels, &pool, &progress});
}

}  // namespace glm_relay
