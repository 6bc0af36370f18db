// tiled_attention/ with vectors of eight.
#include "kernels/tiled_attention/attention.h"

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/lanes.h"

namespace glm_relay {

namespace {

struct AttentionLanes : Avx2Lanes {
  static constexpr int kLanes = 8;
  static constexpr int kByteVectors = 1;
  static constexpr int kScoreQueries = 4;
  // Sums of a second query would leave no registers.
  static constexpr int kOutQueries = 1;
  static constexpr int kOutVectors = 8;

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  template <DType Type>
  static Float load(const uint8_t* p) {
    return load8<Type>(p);
  }
  static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static void widen(Float (&out)[kByteVectors], const int8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static Float firstLanes(int count, Float x, Float other) {
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(glm_relay::firstLanes(count)));
  }
  static float largest(const Float (&x)[2]) {
    const __m256 eight = _mm256_max_ps(x[0], x[1]);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

}  // namespace

template <KvType Type>
void avx2Attention(const AttentionArgs& args) {
  tiled_attention::attention<AttentionLanes, Type>(args);
}

template void avx2Attention<KvType::kFloat32>(const AttentionArgs&);
template void avx2Attention<KvType::kFloat16>(const AttentionArgs&);
template void avx2Attention<KvType::kBfloat16>(const AttentionArgs&);
template void avx2Attention<KvType::kInt8>(const AttentionArgs&);

}  // namespace glm_relay
