// A 64-bit checksum that notices damage, not forgery: XXH64 over little-endian words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace glm_relay {

uint64_t checksum(const uint8_t* data, size_t bytes, uint64_t seed = 0);

// Long data is looked at in pieces of this size, by several threads; its checksum is that of the pieces' own.
constexpr size_t kChecksumPiece = 1 << 20;
inline size_t checksumPieces(uint64_t bytes) { return (bytes + kChecksumPiece - 1) / kChecksumPiece; }
uint64_t pieceChecksum(const uint8_t* data, uint64_t bytes, size_t piece);
uint64_t joinedChecksum(const std::vector<uint64_t>& pieces);

}  // namespace glm_relay
