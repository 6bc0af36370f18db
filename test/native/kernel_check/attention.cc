// Attention over a paged cache with shuffled blocks: every length around the tile edges, head sizes
// around the vector width, several queries of different lengths in one call, rubbish in unused slots.
#include <cmath>
#include <limits>

#include "check.h"

namespace glm_relay {

namespace {

constexpr int kTilesPerBlock = 2;

struct Cache {
  std::vector<uint8_t> keys;
  std::vector<uint8_t> values;
  std::vector<int32_t> blockTable;
};

// Writes slot `slot` of a key tile and a value tile, element by element.
void storeSlot(KvType type, uint8_t* keyTile, uint8_t* valueTile, int slot, const std::vector<float>& key,
               const std::vector<float>& value) {
  const int headDim = static_cast<int>(key.size());
  if (type == KvType::kInt8) {
    std::vector<int8_t> rounded(headDim);
    uint16_t scale;
    uint8_t* const scales[] = {keyTile + kKeyTile * headDim + 2 * slot,
                               valueTile + kKeyTile * headDim + 2 * slot};
    kScalarKernels.quantizeHead(rounded.data(), &scale, key.data(), headDim);
    std::memcpy(scales[0], &scale, sizeof(scale));
    for (int d = 0; d < headDim; d++) keyTile[d * kKeyTile + slot] = static_cast<uint8_t>(rounded[d]);
    kScalarKernels.quantizeHead(rounded.data(), &scale, value.data(), headDim);
    std::memcpy(scales[1], &scale, sizeof(scale));
    std::memcpy(valueTile + slot * headDim, rounded.data(), headDim);
    return;
  }
  const size_t bytes = dtypeBytes(static_cast<DType>(type));
  const auto narrow = kScalarKernels.narrow[static_cast<int>(type)];
  for (int d = 0; d < headDim; d++) narrow(keyTile + (d * kKeyTile + slot) * bytes, &key[d], 1);
  narrow(valueTile + slot * headDim * bytes, value.data(), headDim);
}

// One KV head of `heads` is filled for positions [0, length); all else holds NaN.
Cache fillCache(int headDim, int heads, int length, KvType type, Random& random) {
  const int blocks = length / (kKeyTile * kTilesPerBlock) + 3;
  const size_t tiles = static_cast<size_t>(blocks) * kTilesPerBlock * heads;
  const size_t tileBytes = kvTileBytes(type, headDim);
  Cache cache;
  cache.keys.resize(tiles * tileBytes);
  cache.values.resize(tiles * tileBytes);
  const std::vector<float> rubbish(headDim, std::numeric_limits<float>::quiet_NaN());
  for (size_t tile = 0; tile < tiles; tile++) {
    for (int slot = 0; slot < kKeyTile; slot++) {
      storeSlot(type, cache.keys.data() + tile * tileBytes, cache.values.data() + tile * tileBytes, slot,
                rubbish, rubbish);
    }
  }
  for (int i = 0; i < blocks; i++) cache.blockTable.push_back((i * 5 + 1) % blocks);
  if (blocks % 5 == 0) {
    for (int i = 0; i < blocks; i++) cache.blockTable[i] = blocks - 1 - i;
  }
  for (int position = 0; position < length; position++) {
    const int tile = position / kKeyTile;
    const size_t block = static_cast<size_t>(cache.blockTable[tile / kTilesPerBlock]);
    const size_t base = (block * kTilesPerBlock + tile % kTilesPerBlock) * heads * tileBytes;
    const std::vector<float> key = random.values(headDim);
    const std::vector<float> value = random.values(headDim);
    storeSlot(type, cache.keys.data() + base, cache.values.data() + base, position % kKeyTile, key, value);
  }
  return cache;
}

void checkCase(const KernelTable& variant, int headDim, int length, int queryCount, KvType type,
               Random& random, Check& check) {
  const int heads = 1 + random.below(3);
  const Cache cache = fillCache(headDim, heads, length, type, random);
  const std::vector<float> q = random.values(static_cast<size_t>(queryCount) * headDim);
  std::vector<int> positions;
  // The last query sees everything; the others end anywhere before.
  for (int i = 0; i < queryCount; i++)
    positions.push_back(i + 1 == queryCount ? length - 1 : random.below(length));

  const auto run = [&](const KernelTable& kernels, int first, int count) {
    std::vector<float> out(q.size(), -7.0f);
    std::vector<float> scratch(attentionScratchFloats(headDim), std::numeric_limits<float>::quiet_NaN());
    std::vector<AttentionQuery> queries;
    for (int i = first; i < first + count; i++) {
      queries.push_back({q.data() + i * headDim, out.data() + i * headDim, positions[i]});
    }
    AttentionArgs args = {};
    args.queries = queries.data();
    args.queryCount = count;
    args.kv = {cache.keys.data(), cache.values.data(), cache.blockTable.data(), kTilesPerBlock,
               static_cast<size_t>(heads) * kvTileBytes(type, headDim)};
    args.headDim = headDim;
    args.scale = 1.0f / std::sqrt(static_cast<float>(headDim));
    args.scratch = scratch.data();
    kernels.attention[static_cast<int>(type)](args);
    return out;
  };
  const std::string what = "attention headDim " + std::to_string(headDim) + " length " +
                           std::to_string(length) + " queries " + std::to_string(queryCount) + " type " +
                           std::to_string(static_cast<int>(type));
  const std::vector<float> expected = run(kScalarKernels, 0, queryCount);
  check.equal(run(variant, 0, queryCount), expected, what);
  // A query alone gives what it gives in company.
  const std::vector<float> alone = run(variant, queryCount - 1, 1);
  const auto last = [&](const std::vector<float>& all) {
    return std::vector<float>(all.end() - headDim, all.end());
  };
  check.equal(last(alone), last(expected), what + " alone");
  for (const float x : expected)
    check.that(std::isfinite(x), [&] { return what + ": a hidden slot was read"; });
}

}  // namespace

void checkAttention(const KernelTable& variant, Check& check) {
  Random random(2);
  for (const KvType type : {KvType::kFloat32, KvType::kFloat16, KvType::kBfloat16, KvType::kInt8}) {
    for (const int headDim : {1, 2, 4, 7, 8, 12, 16, 31, 40, 64, 72, 100, 128}) {
      for (const int length : {1, 2, 8, 15, 16, 17, 31, 32, 33, 40, 64, 65, 130}) {
        checkCase(variant, headDim, length, 1, type, random, check);
        checkCase(variant, headDim, length, 2 + random.below(8), type, random, check);
      }
    }
    checkCase(variant, 64, 700, kMaxQueries, type, random, check);
  }
}

}  // namespace glm_relay
