#include "cache/checksum.h"

#include <algorithm>
#include <cstring>

namespace glm_relay {

namespace {

constexpr uint64_t kPrime1 = 0x9e3779b185ebca87ull;
constexpr uint64_t kPrime2 = 0xc2b2ae3d27d4eb4full;
constexpr uint64_t kPrime3 = 0x165667b19e3779f9ull;
constexpr uint64_t kPrime4 = 0x85ebca77c2b2ae63ull;
constexpr uint64_t kPrime5 = 0x27d4eb2f165667c5ull;

inline uint64_t rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

inline uint64_t word(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

inline uint64_t mixed(uint64_t lane, uint64_t input) { return rotate(lane + input * kPrime2, 31) * kPrime1; }

inline uint64_t merged(uint64_t hash, uint64_t lane) { return (hash ^ mixed(0, lane)) * kPrime1 + kPrime4; }

}  // namespace

uint64_t checksum(const uint8_t* data, size_t bytes, uint64_t seed) {
  const uint8_t* const end = data + bytes;
  uint64_t hash = seed + kPrime5;
  if (bytes >= 32) {
    uint64_t a = seed + kPrime1 + kPrime2;
    uint64_t b = seed + kPrime2;
    uint64_t c = seed;
    uint64_t d = seed - kPrime1;
    for (; end - data >= 32; data += 32) {
      a = mixed(a, word(data));
      b = mixed(b, word(data + 8));
      c = mixed(c, word(data + 16));
      d = mixed(d, word(data + 24));
    }
    hash = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
    for (const uint64_t lane : {a, b, c, d}) hash = merged(hash, lane);
  }
  hash += bytes;
  for (; end - data >= 8; data += 8) hash = rotate(hash ^ mixed(0, word(data)), 27) * kPrime1 + kPrime4;
  if (end - data >= 4) {
    uint32_t value;
    std::memcpy(&value, data, sizeof(value));
    hash = rotate(hash ^ value * kPrime1, 23) * kPrime2 + kPrime3;
    data += 4;
  }
  for (; data < end; data++) hash = rotate(hash ^ *data * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

uint64_t pieceChecksum(const uint8_t* data, uint64_t bytes, size_t piece) {
  const uint64_t begin = static_cast<uint64_t>(piece) * kChecksumPiece;
  return checksum(data + begin, std::min<uint64_t>(kChecksumPiece, bytes - begin));
}

uint64_t joinedChecksum(const std::vector<uint64_t>& pieces) {
  return checksum(reinterpret_cast<const uint8_t*>(pieces.data()), pieces.size() * sizeof(uint64_t));
}

}  // namespace glm_relay
