#include "cuda/kernels/attention_parts.h"

namespace glm_relay::cuda {

bool usesTensorCores(Path path, KvType type, int headDim) {
  const bool isTuring = path == Path::kTuring;
  if (type == KvType::kFloat32 || (type == KvType::kBfloat16 && isTuring)) return false;
  // The kernel for heads between 64 and 128 dimensions would not find enough registers.
  if (isTuring && headDim > 64 && headDim < 128) return false;
  return headDim % (type == KvType::kInt8 ? 16 : 8) == 0;
}

void attention(cudaStream_t stream, Path path, const AttentionArgs& args) {
  if (usesTensorCores(path, args.cache.type, args.cache.headDim)) {
    attentionOnTensorCores(stream, path, args);
  } else {
    attentionInFloats(stream, args);
  }
  if (args.partials != nullptr) combineParts(stream, args);
}

}  // namespace glm_relay::cuda
