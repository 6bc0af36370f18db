#include "device/cuda_library.h"

#include <dlfcn.h>

#include <stdexcept>

namespace glm_relay {

const CudaLibrary& openCudaLibrary(const std::string& file) {
  // The loader counts how often a file is opened, and finds it open from the second time on.
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    throw std::runtime_error("the CUDA library cannot be opened: " + std::string(dlerror()));
  const auto function = reinterpret_cast<CudaLibraryFunction>(dlsym(handle, kCudaLibrarySymbol));
  if (function == nullptr) throw std::runtime_error(file + " is not the CUDA library of GLM Relay");
  const CudaLibrary& library = *function();
  if (library.interface != kCudaInterface) {
    throw std::runtime_error(file + " has interface " + std::to_string(library.interface) + ", the engine " +
                             std::to_string(kCudaInterface) + ": build both from the same sources");
  }
  return library;
}

}  // namespace glm_relay
