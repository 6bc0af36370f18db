#include "cuda/kernels/attention_parts.h"

namespace glm_relay::cuda {

bool usesTensorCores(Path path, KvType type, int headDim) {
  switch (type) {
    case KvType::kFloat32:
      return false;
    case KvType::kFloat16:
      return headDim % 8 == 0;
    case KvType::kBfloat16:
      return headDim % 8 == 0 && path == Path::kAmpere;
    case KvType::kInt8:
      return headDim % 16 == 0;
  }
  return false;
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
