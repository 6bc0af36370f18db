#include "kernels/avx2/avx2.h"

namespace glm_relay {

const KernelTable kAvx2Kernels = {
    "avx2",
    {avx2Matmul<DType::kFloat32>, avx2Matmul<DType::kFloat16>, avx2Matmul<DType::kBfloat16>},
    avx2MatmulInt8,
    avx2MatmulInt4,
    avx2RoundingError,
    avx2QuantizeRows,
    {avx2Attention<KvType::kFloat32>, avx2Attention<KvType::kFloat16>, avx2Attention<KvType::kBfloat16>,
     avx2Attention<KvType::kInt8>},
    avx2QuantizeHead,
    avx2RmsNorm,
    avx2LayerNorm,
    avx2Rotate,
    avx2RotateHalves,
    avx2GatedSilu,
    avx2Gelu,
    avx2GatedGelu,
    avx2Add,
    avx2ScaleAdd,
    {avx2Widen<DType::kFloat32>, avx2Widen<DType::kFloat16>, avx2Widen<DType::kBfloat16>},
    {avx2Narrow<DType::kFloat32>, avx2Narrow<DType::kFloat16>, avx2Narrow<DType::kBfloat16>},
    {avx2Round<DType::kFloat32>, avx2Round<DType::kFloat16>, avx2Round<DType::kBfloat16>},
    avx2ExpWeights,
    avx2ExpSum,
};

}  // namespace glm_relay
