// y[m, n] = sum over k, ascending, of x[m, k] * w[n, k]: one fused multiply-add per element, in
// float32, from zero; then the bias.
#include <algorithm>
#include <cmath>

#include "kernels/half.h"
#include "kernels/scalar/scalar.h"

namespace glm_relay {

template <DType Type>
void scalarMatmul(const MatmulArgs& args) {
  const int nEnd = std::min(args.n, args.stripEnd * kStripRows);
  for (int m = 0; m < args.rows; m++) {
    const float* x = args.x + static_cast<int64_t>(m) * args.k;
    for (int n = args.stripBegin * kStripRows; n < nEnd; n++) {
      const int64_t column = static_cast<int64_t>(n / kStripRows) * args.k * kStripRows + n % kStripRows;
      float sum = 0.0f;
      for (int k = 0; k < args.k; k++) {
        const float w = Stored<Type>::load(args.packed, column + static_cast<int64_t>(k) * kStripRows);
        sum = std::fmaf(x[k], w, sum);
      }
      args.y[static_cast<int64_t>(m) * args.n + n] = args.bias ? sum + args.bias[n] : sum;
    }
  }
}

template void scalarMatmul<DType::kFloat32>(const MatmulArgs&);
template void scalarMatmul<DType::kFloat16>(const MatmulArgs&);
template void scalarMatmul<DType::kBfloat16>(const MatmulArgs&);

}  // namespace glm_relay
