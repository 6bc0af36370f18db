// Addition and the conversions between float32 and itself are scalar/'s: plain loops that the compiler
// turns into NEON, which every 64-bit Arm CPU has.
#include "kernels/neon/neon.h"
#include "kernels/scalar/scalar.h"

namespace glm_relay {

const KernelTable kNeonKernels = {
    "neon",
    {neonMatmul<DType::kFloat32>, neonMatmul<DType::kFloat16>, neonMatmul<DType::kBfloat16>},
    neonMatmulInt8,
    neonMatmulInt4,
    neonRoundingError,
    neonQuantizeRows,
    {neonAttention<KvType::kFloat32>, neonAttention<KvType::kFloat16>, neonAttention<KvType::kBfloat16>,
     neonAttention<KvType::kInt8>},
    neonQuantizeHead,
    neonRmsNorm,
    neonLayerNorm,
    neonRotate,
    neonRotateHalves,
    neonGatedSilu,
    neonGelu,
    neonGatedGelu,
    scalarAdd,
    neonScaleAdd,
    {scalarWiden<DType::kFloat32>, neonWiden<DType::kFloat16>, neonWiden<DType::kBfloat16>},
    {scalarNarrow<DType::kFloat32>, neonNarrow<DType::kFloat16>, neonNarrow<DType::kBfloat16>},
    {scalarRound<DType::kFloat32>, neonRound<DType::kFloat16>, neonRound<DType::kBfloat16>},
    neonExpWeights,
    neonExpSum,
};

}  // namespace glm_relay
