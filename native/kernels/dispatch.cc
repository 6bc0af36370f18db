// Chooses the kernel variant. Built without architecture flags: it must run on every CPU.
#include <cstring>

#ifdef GLM_RELAY_HAVE_NEON
#include <sys/auxv.h>
#endif

#include "kernels/kernels.h"

namespace glm_relay {

namespace {

struct Variants {
  const KernelTable* tables[kMaxVariants];
  int count;
};

// Imitated instructions (native/build.sh --simde) run everywhere.
#ifdef GLM_RELAY_SIMDE
#define GLM_RELAY_CPU_HAS(feature) true
#elif defined(GLM_RELAY_HAVE_AVX2)
#define GLM_RELAY_CPU_HAS(feature) __builtin_cpu_supports(feature)
#endif

// Those that this CPU can run, best first.
Variants variants() {
  Variants found = {{}, 0};
  const auto add = [&](const KernelTable& table) { found.tables[found.count++] = &table; };
#ifdef GLM_RELAY_HAVE_AVX2
#ifndef GLM_RELAY_SIMDE
  __builtin_cpu_init();
#endif
  const bool avx2 = GLM_RELAY_CPU_HAS("avx2") && GLM_RELAY_CPU_HAS("fma") && GLM_RELAY_CPU_HAS("f16c");
#ifdef GLM_RELAY_HAVE_AVX512_VNNI
  const bool avx512 = GLM_RELAY_CPU_HAS("avx512f") && GLM_RELAY_CPU_HAS("avx512bw") &&
                      GLM_RELAY_CPU_HAS("avx512dq") && GLM_RELAY_CPU_HAS("avx512vl");
  if (avx2 && avx512 && GLM_RELAY_CPU_HAS("avx512vnni")) add(avx512VnniKernels());
#endif
#ifdef GLM_RELAY_HAVE_AVX_VNNI
  if (avx2 && GLM_RELAY_CPU_HAS("avxvnni")) add(avxVnniKernels());
#endif
  if (avx2) add(kAvx2Kernels);
#endif
#ifdef GLM_RELAY_HAVE_NEON
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) add(kNeonKernels);
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
