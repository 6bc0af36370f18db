// What gains by the wider vectors; everything else is avx2/'s.
#include "kernels/avx512_vnni/avx512.h"
#include "kernels/avx512_vnni/lanes.h"

namespace glm_relay {

namespace {

void matmulInt8(const QuantMatmulArgs& args) { vnni::matmul<Lanes16, Int8Tile>(args, WeightType::kInt8); }
void matmulInt4(const QuantMatmulArgs& args) { vnni::matmul<Lanes16, Int4Tile>(args, WeightType::kInt4); }

KernelTable table() {
  KernelTable table = kAvx2Kernels;
  table.name = "avx512-vnni";
  table.matmul[static_cast<int>(DType::kFloat32)] = avx512Matmul<DType::kFloat32>;
  table.matmul[static_cast<int>(DType::kFloat16)] = avx512Matmul<DType::kFloat16>;
  table.matmul[static_cast<int>(DType::kBfloat16)] = avx512Matmul<DType::kBfloat16>;
  table.attention[static_cast<int>(KvType::kFloat32)] = avx512Attention<KvType::kFloat32>;
  table.attention[static_cast<int>(KvType::kFloat16)] = avx512Attention<KvType::kFloat16>;
  table.attention[static_cast<int>(KvType::kBfloat16)] = avx512Attention<KvType::kBfloat16>;
  table.attention[static_cast<int>(KvType::kInt8)] = avx512Attention<KvType::kInt8>;
  table.matmulInt8 = matmulInt8;
  table.matmulInt4 = matmulInt4;
  return table;
}

}  // namespace

const KernelTable& avx512VnniKernels() {
  static const KernelTable kTable = table();
  return kTable;
}

}  // namespace glm_relay
