// Products of rounded matrices by VNNI; everything else is avx2/'s.
#include "kernels/avx_vnni/lanes.h"

namespace glm_relay {

namespace {

void matmulInt8(const QuantMatmulArgs& args) { byte_dot::matmul<Lanes8, Int8Tile>(args, WeightType::kInt8); }
void matmulInt4(const QuantMatmulArgs& args) { byte_dot::matmul<Lanes8, Int4Tile>(args, WeightType::kInt4); }

KernelTable table() {
  KernelTable table = kAvx2Kernels;
  table.name = "avx-vnni";
  table.matmulInt8 = matmulInt8;
  table.matmulInt4 = matmulInt4;
  return table;
}

}  // namespace

const KernelTable& avxVnniKernels() {
  static const KernelTable kTable = table();
  return kTable;
}

}  // namespace glm_relay
