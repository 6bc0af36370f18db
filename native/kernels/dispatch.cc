// Chooses the kernel variant. Built without architecture flags: it must run on every CPU.
#include <cstring>

#include "kernels/kernels.h"

namespace glm_relay {

KernelNames availableKernels() {
  KernelNames found = {{}, 0};
#ifdef GLM_RELAY_HAVE_AVX2
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.names[found.count++] = kAvx2Kernels.name;
  }
#endif
  found.names[found.count++] = kScalarKernels.name;
  return found;
}

const KernelTable* findKernels(const char* name) {
  const KernelNames available = availableKernels();
  for (int i = 0; i < available.count; i++) {
    if (name[0] != '\0' && std::strcmp(name, available.names[i]) != 0) continue;
#ifdef GLM_RELAY_HAVE_AVX2
    if (std::strcmp(available.names[i], kAvx2Kernels.name) == 0) return &kAvx2Kernels;
#endif
    return &kScalarKernels;
  }
  return nullptr;
}

}  // namespace glm_relay
