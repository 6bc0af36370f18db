#include <cstring>

#include "backend.h"

namespace glm_relay {

const uint8_t* HostMatrix::row(int index, uint8_t* scratch) const {
  if (!sideBySide) {
    size_t piece = 0;
    for (; index >= pieces[piece].rows; piece++) index -= pieces[piece].rows;
    return pieces[piece].data + index * rowBytes();
  }
  uint8_t* out = scratch;
  for (const HostPiece& piece : pieces) {
    const size_t bytes = static_cast<size_t>(piece.columns) * dtypeBytes(dtype);
    std::memcpy(out, piece.data + index * bytes, bytes);
    out += bytes;
  }
  return scratch;
}

}  // namespace glm_relay
