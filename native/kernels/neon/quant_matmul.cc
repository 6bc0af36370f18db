// Products of rounded matrices by the signed byte dot product (SDOT). Both operands are signed, so 8-bit
// weights are multiplied as they are. 4-bit weights are multiplied as they are stored, q + 8, and a sum
// starts with what makes up for it: that is one operation per vector less than subtracting 8.
#include "kernels/byte_dot/quant_matmul.h"

#include "kernels/neon/lanes.h"
#include "kernels/neon/neon.h"

namespace glm_relay {

namespace {

struct Lanes4 {
  using Ints = int32x4_t;
  using Floats = float32x4_t;
  static constexpr int kLanes = 4;
  // Vectors of output rows that are computed side by side: both halves of 16 bytes of 4-bit weights, twice.
  static constexpr int kSide = 4;
  // Rows of activations at a time: a quad of four rows is one vector, of which an instruction picks a row.
  // 16 sums, 4 vectors of weights and that one leave registers for unpacking.
  static constexpr int kRows = 4;

  static Floats broadcast(float x) { return vdupq_n_f32(x); }
  // Four rows of those from `row` on, a multiple of 16: the low halves of 32 bytes are the first eight.
  static Ints weights(const Int4Tile& tile, int row, int side, int quad) {
    const uint8x16_t bytes = vld1q_u8(tile.values[row / 16][quad][side % 2 * kLanes]);
    return vreinterpretq_s32_u8(side < 2 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4));
  }
  static Ints weights(const Int8Tile& tile, int row, int side, int quad) {
    return vreinterpretq_s32_s8(vld1q_s8(tile.values[row / 8 + side / 2][quad][side % 2 * kLanes]));
  }
  static Ints weights(const byte_dot::SpreadTile& tile, int row, int side, int quad) {
    return vreinterpretq_s32_u8(vld1q_u8(tile.values[quad][row + side * kLanes]));
  }
  static Floats scales(const StripScales& scales, int row) {
    return load4<DType::kFloat16>(reinterpret_cast<const uint8_t*>(scales.half + row));
  }
  static Floats scales(const byte_dot::SpreadTile& tile, int row) { return vld1q_f32(tile.scales + row); }
  template <class Stored>
  static Ints start(const int16_t (&offset)[2]) {
    return vdupq_n_s32(sizeof(Stored) == sizeof(Int4Tile) ? offset[0] + offset[1] : 0);
  }
  // Four columns of four rows of activations, and which row is meant.
  using Quads = int8x16_t;
  struct Quad {
    Quads rows;
    int row;
  };
  static Quads quads(const int8_t (&rows)[kTileRows][kQuad]) {
    const int8_t* bytes = rows[0];
    // Keeps the compiler from holding a tile's activations for the next rows of weights, and spilling them.
    asm("" : "+r"(bytes));
    return vld1q_s8(bytes);
  }
  static Quad quad(Quads rows, int row) { return {rows, row}; }
  // sum + the four byte products of each lane
  static Ints dot(Ints sum, Ints weights, Quad x) {
    const int8x16_t w = vreinterpretq_s8_s32(weights);
    switch (x.row) {
      case 0:
        sum = vdotq_laneq_s32(sum, w, x.rows, 0);
        break;
      case 1:
        sum = vdotq_laneq_s32(sum, w, x.rows, 1);
        break;
      case 2:
        sum = vdotq_laneq_s32(sum, w, x.rows, 2);
        break;
      default:
        sum = vdotq_laneq_s32(sum, w, x.rows, 3);
    }
    // Keeps the order of the source: GCC would make one sum after the other, and spill a tile's weights.
    asm volatile("" : "+w"(sum));
    return sum;
  }
  static Floats toFloats(Ints x) { return vcvtq_f32_s32(x); }
  static Floats times(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Floats x) { vst1q_f32(p, x); }
  static void store(uint8_t* p, Ints x) { vst1q_u8(p, vreinterpretq_u8_s32(x)); }
};

}  // namespace

void neonMatmulInt8(const QuantMatmulArgs& args) {
  byte_dot::matmul<Lanes4, Int8Tile>(args, WeightType::kInt8);
}
void neonMatmulInt4(const QuantMatmulArgs& args) {
  byte_dot::matmul<Lanes4, Int4Tile>(args, WeightType::kInt4);
}

}  // namespace glm_relay
