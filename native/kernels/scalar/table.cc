#include "kernels/scalar/scalar.h"

namespace glm_relay {

const KernelTable kScalarKernels = {
    "scalar",
    {scalarMatmul<DType::kFloat32>, scalarMatmul<DType::kFloat16>, scalarMatmul<DType::kBfloat16>},
    scalarMatmulInt8,
    scalarMatmulInt4,
    scalarRoundingError,
    scalarQuantizeRows,
    {scalarAttention<KvType::kFloat32>, scalarAttention<KvType::kFloat16>, scalarAttention<KvType::kBfloat16>,
     scalarAttention<KvType::kInt8>},
    scalarQuantizeHead,
    scalarRmsNorm,
    scalarLayerNorm,
    scalarRotate,
    scalarRotateHalves,
    scalarGatedSilu,
    scalarGelu,
    scalarGatedGelu,
    scalarAdd,
    scalarScaleAdd,
    {scalarWiden<DType::kFloat32>, scalarWiden<DType::kFloat16>, scalarWiden<DType::kBfloat16>},
    {scalarNarrow<DType::kFloat32>, scalarNarrow<DType::kFloat16>, scalarNarrow<DType::kBfloat16>},
    {scalarRound<DType::kFloat32>, scalarRound<DType::kFloat16>, scalarRound<DType::kBfloat16>},
    scalarExpWeights,
    scalarExpSum,
};

}  // namespace glm_relay
