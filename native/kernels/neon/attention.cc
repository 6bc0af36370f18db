// tiled_attention/ with vectors of four.
#include "kernels/tiled_attention/attention.h"

#include "kernels/neon/lanes.h"
#include "kernels/neon/neon.h"

namespace glm_relay {

namespace {

struct AttentionLanes : NeonLanes {
  static constexpr int kLanes = 4;
  static constexpr int kByteVectors = 2;
  static constexpr int kScoreQueries = 4;
  // Sums of a second query would leave no registers.
  static constexpr int kOutQueries = 1;
  static constexpr int kOutVectors = 16;

  static Float load(const float* p) { return vld1q_f32(p); }
  template <DType Type>
  static Float load(const uint8_t* p) {
    return load4<Type>(p);
  }
  static void store(float* p, Float x) { vst1q_f32(p, x); }
  static void widen(Float (&out)[kByteVectors], const int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    out[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
  }
  static Float firstLanes(int count, Float x, Float other) {
    const int32_t lanes[kLanes] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(count)), x, other);
  }
  static float largest(const Float (&x)[4]) {
    return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(x[0], x[1]), vmaxnmq_f32(x[2], x[3])));
  }
};

}  // namespace

template <KvType Type>
void neonAttention(const AttentionArgs& args) {
  tiled_attention::attention<AttentionLanes, Type>(args);
}

template void neonAttention<KvType::kFloat32>(const AttentionArgs&);
template void neonAttention<KvType::kFloat16>(const AttentionArgs&);
template void neonAttention<KvType::kBfloat16>(const AttentionArgs&);
template void neonAttention<KvType::kInt8>(const AttentionArgs&);

}  // namespace glm_relay
