// The operations that a CPU variant implements, as a table of function pointers. scalar/ is the
// specification to the bit; every other variant must equal it with ==, for any shape. What is
// computed, and in which order, is written down in ../CANON.md; the comments here give shapes.
//
// No function here allocates, keeps state or looks at the number of threads. A row's result never
// depends on the other rows of a call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace glm_relay {

enum class DType : uint8_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };
constexpr int kDTypeCount = 3;

constexpr size_t dtypeBytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// What keys and values are stored as: a float type, or 8 bits with one FP16 scale per token and head.
enum class KvType : uint8_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kInt8 = 3 };
constexpr int kKvTypeCount = 4;

// Softmax and norm sums, and the tiles in which attention visits keys, have this many lanes.
constexpr int kTreeLanes = 16;
constexpr int kKeyTile = 16;

// A packed float matrix is made of strips of kStripRows output rows; within a strip, for every k, the
// 32 weights of that column lie side by side: element (n, k) is at (n / 32) * K * 32 + k * 32 + n % 32.
// A lane is an output row, so a variant sums k in ascending order whatever its vector width. With
// two-byte weights one k of a strip is exactly one cache line. The last strip is filled up with zeros.
//
// y[m, n] = sum over k of x[m, k] * w[n, k], then + bias[n] where there is one.
struct MatmulArgs {
  float* y;
  const float* x;
  const void* packed;
  const float* bias;  // null: none
  int rows;
  int n;
  int k;
  int stripBegin;  // this call computes output columns [32 * stripBegin, min(n, 32 * stripEnd))
  int stripEnd;
};

// The same product of rounded activations and rounded weights (quant/format.h).
struct QuantMatmulArgs {
  float* y;
  const ActivationTile* x;  // activationTiles(rows, k)
  const uint8_t* strips;
  const float* bias;  // null: none
  int rows;
  int n;
  int k;
  int tilesPerGroup;
  int stripBegin;
  int stripEnd;
};

// One query head of one row; it sees the keys at positions [0, position].
struct AttentionQuery {
  const float* q;  // [headDim]
  float* out;      // [headDim]
  int position;
};

// Where the keys and values of one sequence and one KV head lie: tile t (positions [16t, 16t + 16))
// is in block blockTable[t / tilesPerBlock]. A key tile is [headDim, 16], a value tile
// [16, headDim], both in the cache's type; of 8-bit tiles the FP16 scales of the 16 positions follow.
struct KvView {
  const uint8_t* keys;
  const uint8_t* values;
  const int32_t* blockTable;
  int tilesPerBlock;
  size_t tileStride;  // bytes from a tile to the next one of the same head

  size_t tileOffset(int tile) const {
    const size_t block = static_cast<size_t>(blockTable[tile / tilesPerBlock]);
    return (block * tilesPerBlock + tile % tilesPerBlock) * tileStride;
  }
};

constexpr size_t kvTileBytes(KvType type, int headDim) {
  const size_t elements = static_cast<size_t>(kKeyTile) * headDim;
  if (type == KvType::kInt8) return elements + kKeyTile * sizeof(uint16_t);
  return elements * (type == KvType::kFloat32 ? 4 : 2);
}

struct AttentionArgs {
  const AttentionQuery* queries;
  int queryCount;  // at most kMaxQueries
  KvView kv;
  int headDim;
  float scale;
  float* scratch;  // attentionScratchFloats(headDim)
};
constexpr int kMaxQueries = 32;

// Two widened tiles, and per query: maximum, 16 lanes of the sum, headDim sums of the output,
// 16 weights of the tile at hand.
constexpr size_t attentionScratchFloats(int headDim) {
  return 2 * static_cast<size_t>(kKeyTile) * headDim +
         kMaxQueries * (static_cast<size_t>(headDim) + 2 * kTreeLanes + 2 + kKeyTile);
}

struct KernelTable {
  const char* name;

  void (*matmul[kDTypeCount])(const MatmulArgs& args);
  void (*matmulInt8)(const QuantMatmulArgs& args);
  void (*matmulInt4)(const QuantMatmulArgs& args);
  // The squared error of a group of weights at a scale; `count` is a multiple of 32.
  float (*roundingError)(const float* weights, int count, float scale, QuantRange range);
  // Rounds 1 to kTileRows rows of k columns to the tiles of one row of tiles; missing rows become zero.
  void (*quantizeRows)(ActivationTile* out, const float* x, int rows, int k);
  void (*attention[kKvTypeCount])(const AttentionArgs& args);
  // Rounds a key or a value of one head to 8 bits; the scale is FP16.
  void (*quantizeHead)(int8_t* out, uint16_t* scale, const float* in, int headDim);

  // y = x / sqrt(mean(x^2) + eps) * weight; one row.
  void (*rmsNorm)(float* y, const float* x, const float* weight, int size, float eps);
  // y = (x - mean) / sqrt(variance + eps) * weight + bias; one row.
  void (*layerNorm)(float* y, const float* x, const float* weight, const float* bias, int size, float eps);
  // Rotates the pairs (2j, 2j + 1) of one head in place: cosSin[2j] = cos, cosSin[2j + 1] = sin.
  void (*rotate)(float* head, const float* cosSin, int ropeDim);
  // The same for the pairs (j, ropeDim / 2 + j).
  void (*rotateHalves)(float* head, const float* cosSin, int ropeDim);
  // y[i] = silu(gateUp[i]) * gateUp[size + i]
  void (*gatedSilu)(float* y, const float* gateUp, int size);
  // y[i] = gelu(x[i]), by tanh
  void (*gelu)(float* y, const float* x, int size);
  // y[i] = upGate[i] * gelu(upGate[size + i]), by erf
  void (*gatedGelu)(float* y, const float* upGate, int size);
  // x[i] += delta[i]
  void (*add)(float* x, const float* delta, int64_t count);
  // y[i] = x[i] * scale + delta[i], in one rounding; y may be delta.
  void (*scaleAdd)(float* y, const float* x, float scale, const float* delta, int64_t count);

  // Exact conversion to float32; the input needs no alignment.
  void (*widen[kDTypeCount])(float* out, const void* in, int64_t count);
  // Conversion to the type, to nearest even; the output needs no alignment.
  void (*narrow[kDTypeCount])(void* out, const float* in, int64_t count);
  // x[i] = widen(narrow(x[i]))
  void (*round[kDTypeCount])(float* x, int64_t count);

  // out[i] = exp((logits[i] - max) / temperature)
  void (*expWeights)(float* out, const float* logits, int64_t count, float max, float temperature);
  // The 16-lane sum of exp(logits[i] - max).
  float (*expSum)(const float* logits, int64_t count, float max);
};

// Names of the variants that this CPU can run, best first; "scalar" is always among them.
constexpr int kMaxVariants = 4;
struct KernelNames {
  const char* names[kMaxVariants];
  int count;
};
KernelNames availableKernels();
// The named variant, or the best one for an empty name; null when this CPU has no such variant.
const KernelTable* findKernels(const char* name);

extern const KernelTable kScalarKernels;
#ifdef GLM_RELAY_HAVE_AVX2
extern const KernelTable kAvx2Kernels;
#endif
#ifdef GLM_RELAY_HAVE_NEON
extern const KernelTable kNeonKernels;
#endif
// To be called on CPUs that have the instructions only.
#ifdef GLM_RELAY_HAVE_AVX_VNNI
const KernelTable& avxVnniKernels();
#endif
#ifdef GLM_RELAY_HAVE_AVX512_VNNI
const KernelTable& avx512VnniKernels();
#endif

}  // namespace glm_relay
