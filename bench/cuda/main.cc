// cuda_bench [products|quick-products|attention|rows|experts|all] [turing]: the CUDA kernels on the first GPU
// that CUDA sees, beside what that GPU reaches in the same run.
#include <cstdio>
#include <cstring>
#include <exception>

#include "measure.h"

namespace glm_relay::cuda {

namespace {

int run(const char* group, bool turing) {
  const auto wanted = [&](const char* name) {
    return std::strcmp(group, name) == 0 || std::strcmp(group, "all") == 0;
  };
  cudaDeviceProp properties = {};
  check(cudaGetDeviceProperties(&properties, 0), "being looked at");
  const Path path = turing || properties.major < 8 ? Path::kTuring : Path::kAmpere;
  prepareLaunches();
  const Limits limits = measureLimits();
  if (std::strcmp(group, "limits") == 0) {
    std::printf("{\"name\":\"%s\",\"copyBytes\":%.0f,\"matrixOperations\":%.0f}\n", properties.name,
                limits.copyBytes, limits.matrixOperations[static_cast<int>(path)]);
    return 0;
  }
  std::printf("%s, compute capability %d.%d, instructions of %s\n", properties.name, properties.major,
              properties.minor, path == Path::kTuring ? "sm_75" : "sm_80");
  std::printf(
      "copy bandwidth %.0f GB/s (bytes read and written); matrix peak %.0f TFLOP/s, with sm_75's instruction "
      "%.0f\n",
      limits.copyBytes / 1e9, limits.matrixOperations[1] / 1e12, limits.matrixOperations[0] / 1e12);
  if (wanted("products")) benchProducts(limits, path, false);
  if (std::strcmp(group, "quick-products") == 0) benchProducts(limits, path, true);
  if (wanted("attention")) benchAttention(limits, path);
  if (wanted("rows")) benchRows(limits);
  if (wanted("experts")) benchExperts(limits, path);
  return 0;
}

}  // namespace

}  // namespace glm_relay::cuda

int main(int argc, char** argv) {
  try {
    return glm_relay::cuda::run(argc > 1 ? argv[1] : "all", argc > 2 && std::strcmp(argv[2], "turing") == 0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
