#include "model/rope.h"

#include "kernels/canon_double.h"

namespace glm_relay {

Rope::Rope(const ModelShape& shape)
    : axes_(shape.form.ropeAxes), positionDivisor_(shape.ropePositionDivisor) {
  const double logBase = canonLog64(shape.ropeBase);
  const int width = shape.ropeDim / axes_;
  for (int i = 0; i < width; i += 2) {
    const double exponent = static_cast<double>(i) / width;
    frequencies_.push_back(canonExp64(-exponent * logBase));
  }
}

void Rope::rotation(float* cosSin, int position, int blockPosition) const {
  rotateAxis(cosSin, position);
  if (axes_ == 2) rotateAxis(cosSin + 2 * frequencies_.size(), blockPosition);
}

void Rope::rotateAxis(float* cosSin, int position) const {
  const double divided = position / positionDivisor_;
  for (size_t j = 0; j < frequencies_.size(); j++) {
    const SinCos64 angle = canonSinCos64(divided * frequencies_[j]);
    cosSin[2 * j] = static_cast<float>(angle.cos);
    cosSin[2 * j + 1] = static_cast<float>(angle.sin);
  }
}

}  // namespace glm_relay
