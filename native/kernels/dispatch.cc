// Chooses the kernel variant. Built without architecture flags: it must run on every CPU.
#include <cstring>

#include "kernels/kernels.h"

namespace glm_relay {

namespace {

struct Variants {
  const KernelTable* tables[kMaxVariants];
  int count;
};

// Those that this CPU can run, best first.
Variants variants() {
  Variants found = {{}, 0};
  const auto add = [&](const KernelTable& table) { found.tables[found.count++] = &table; };
#ifdef GLM_RELAY_HAVE_AVX2
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#ifdef GLM_RELAY_HAVE_AVX512_VNNI
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && __builtin_cpu_supports("avx512vnni")) add(avx512VnniKernels());
#endif
#ifdef GLM_RELAY_HAVE_AVX_VNNI
  if (avx2 && __builtin_cpu_supports("avxvnni")) add(avxVnniKernels());
#endif
  if (avx2) add(kAvx2Kernels);
#endif
  add(kScalarKernels);
  return found;
}

}  // namespace

KernelNames availableKernels() {
  const Variants found = variants();
  KernelNames available = {{}, found.count};
  for (int i = 0; i < found.count; i++) available.names[i] = found.tables[i]->name;
  return available;
}

const KernelTable* findKernels(const char* name) {
  const Variants found = variants();
  for (int i = 0; i < found.count; i++) {
    if (name[0] == '\0' || std::strcmp(name, found.tables[i]->name) == 0) return found.tables[i];
  }
  return nullptr;
}

}  // namespace glm_relay
