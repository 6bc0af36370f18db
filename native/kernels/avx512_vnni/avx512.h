// Kernels for CPUs with AVX-512 (F, BW, DQ, VL) and its VNNI. Equal to scalar/ with ==.
#pragma once

#include "kernels/kernels.h"

namespace glm_relay {

template <DType Type>
void avx512Matmul(const MatmulArgs& args);
template <KvType Type>
void avx512Attention(const AttentionArgs& args);

}  // namespace glm_relay
