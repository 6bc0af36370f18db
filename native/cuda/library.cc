#include "cuda/library.h"

#include <utility>

#include "cuda/cuda_backend.h"

namespace glm_relay::cuda {

namespace {

constexpr int kOldestMajor = 7;
constexpr int kOldestMinor = 5;
constexpr int kAmpereMajor = 8;

std::vector<CudaDevice> devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "being looked for");
  std::vector<CudaDevice> found;
  for (int i = 0; i < count; i++) {
    cudaDeviceProp properties = {};
    check(cudaGetDeviceProperties(&properties, i), "being looked at");
    found.push_back({properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  return found;
}

uint64_t freeBytes(int device) {
  check(cudaSetDevice(device), "being looked at");
  size_t available = 0;
  size_t total = 0;
  check(cudaMemGetInfo(&available, &total), "being looked at");
  return available;
}

std::unique_ptr<Backend> create(const CudaBackendRequest& request) {
  int count = 0;
  check(cudaGetDeviceCount(&count), "being looked for");
  if (request.device < 0 || request.device >= count) {
    throw CudaError("there is no GPU " + std::to_string(request.device) + ", but " + std::to_string(count));
  }
  cudaDeviceProp properties = {};
  check(cudaGetDeviceProperties(&properties, request.device), "being looked at");
  if (properties.major < kOldestMajor ||
      (properties.major == kOldestMajor && properties.minor < kOldestMinor)) {
    throw CudaError(std::string(properties.name) + " has compute capability " +
                    std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                    "; expected 7.5 or later");
  }
  const Path path = request.turing || properties.major < kAmpereMajor ? Path::kTuring : Path::kAmpere;
  std::string name = "cuda-sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
  if (request.turing) name += "-turing";
  return std::make_unique<CudaBackend>(request.device, path, std::move(name), *request.kernels, *request.pool,
                                       *request.progress);
}

constexpr CudaLibrary kLibrary = {kCudaInterface, devices, freeBytes, create};

}  // namespace

}  // namespace glm_relay::cuda

extern "C" __attribute__((visibility("default"))) const glm_relay::CudaLibrary* glmRelayCudaLibrary() {
  return &glm_relay::cuda::kLibrary;
}
