// tiled_attention/ with vectors of sixteen: a row of a key tile is one.
#include "kernels/tiled_attention/attention.h"

#include "kernels/avx512_vnni/avx512.h"
#include "kernels/avx512_vnni/floats.h"

namespace glm_relay {

namespace {

struct AttentionLanes : Avx512Lanes {
  static constexpr int kLanes = 16;
  static constexpr int kByteVectors = 1;
  static constexpr int kScoreQueries = 8;
  static constexpr int kOutQueries = 2;
  static constexpr int kOutVectors = 8;

  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  template <DType Type>
  static Float load(const uint8_t* p) {
    return load16<Type>(p);
  }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static void widen(Float (&out)[kByteVectors], const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    out[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  static Float firstLanes(int count, Float x, Float other) {
    return _mm512_mask_blend_ps(glm_relay::firstLanes(count), other, x);
  }
  static float largest(const Float (&x)[1]) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x[0]), _mm512_extractf32x8_ps(x[0], 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

}  // namespace

template <KvType Type>
void avx512Attention(const AttentionArgs& args) {
  tiled_attention::attention<AttentionLanes, Type>(args);
}

template void avx512Attention<KvType::kFloat32>(const AttentionArgs&);
template void avx512Attention<KvType::kFloat16>(const AttentionArgs&);
template void avx512Attention<KvType::kBfloat16>(const AttentionArgs&);
template void avx512Attention<KvType::kInt8>(const AttentionArgs&);

}  // namespace glm_relay
