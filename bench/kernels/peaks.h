// What a core reaches when it does nothing else: the limits that kernels are held against.
#pragma once

#include <cstddef>
#include <cstdint>

namespace glm_relay {

// Results go here, so that no loop is left out.
extern volatile int64_t sink;

// So many rounds of independent operations. Returns how many operations that were: a multiply and an add
// are two.
using PeakLoop = int64_t (*)(int64_t rounds);

struct Peaks {
  PeakLoop bytes;   // products of bytes, as the variant's kernels do them
  PeakLoop floats;  // fused multiply-adds
};

void avx2Read(const uint8_t* memory, size_t bytes);
int64_t avx2Bytes(int64_t rounds);
int64_t avx2Floats(int64_t rounds);
int64_t avxVnniBytes(int64_t rounds);
int64_t avx512VnniBytes(int64_t rounds);
int64_t avx512Floats(int64_t rounds);

}  // namespace glm_relay
