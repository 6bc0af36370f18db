// Opens the shared library of the CUDA backend. The engine itself knows nothing of CUDA.
#pragma once

#include <string>

#include "cuda/library.h"

namespace glm_relay {

// Stays open until the process ends. Throws std::runtime_error naming the file and what is wrong with it.
const CudaLibrary& openCudaLibrary(const std::string& file);

}  // namespace glm_relay
