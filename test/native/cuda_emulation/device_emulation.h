// The instructions that native/cuda/device.h writes in PTX, as plain functions. Fragments are those of the
// PTX manual: lane l holds, with g = l / 4 and t = l % 4,
//   A (16 x k): register 0: row g, columns 2t, 2t + 1; register 1: row g + 8; registers 2 and 3: columns + 8
//   B (k x 8):  register 0: column g, rows 2t, 2t + 1; register 1: rows + 8
//   C (16 x 8): 0, 1: row g, columns 2t, 2t + 1; 2, 3: row g + 8
#pragma once

#include "cuda_emulation.h"

namespace glm_relay::cuda {

inline uint8_t* sharedMemory() { return emulation::thread->shared; }

// One kernel runs after the other; a thread that never asked for it is an error.
inline void awaitPrevious() { emulation::thread->hasAwaited = true; }
inline void beginNext() {}
inline void prefetchToL2(const void*) {}

inline uint16_t halfBits(float x) { return floatToHalf(x); }
inline float halfValue(uint16_t bits) { return halfToFloat(bits); }

template <class Operation>
uint32_t onHalves(uint32_t a, uint32_t b, Operation operation) {
  const auto one = [&](uint32_t x, uint32_t y) -> uint32_t {
    return floatToHalf(
        operation(halfToFloat(static_cast<uint16_t>(x)), halfToFloat(static_cast<uint16_t>(y))));
  };
  return one(a & 0xffffu, b & 0xffffu) | one(a >> 16, b >> 16) << 16;
}
// Two FP16 numbers each, correctly rounded: one float operation on them is exact or rounds to the same.
inline uint32_t subtractHalves(uint32_t a, uint32_t b) {
  return onHalves(a, b, [](float x, float y) { return x - y; });
}
inline uint32_t multiplyHalves(uint32_t a, uint32_t b) {
  return onHalves(a, b, [](float x, float y) { return x * y; });
}

inline uint32_t packHalves(float low, float high) {
  return floatToHalf(low) | static_cast<uint32_t>(floatToHalf(high)) << 16;
}
inline uint32_t packBfloats(float low, float high) {
  return floatToBfloat(low) | static_cast<uint32_t>(floatToBfloat(high)) << 16;
}
inline int computedAnew(int x) { return x; }
inline float exp2Fast(float x) { return std::exp2(x); }

// The product of two FP16 numbers is exact in float32; the sum is, for all that kernels use it for.
inline uint32_t fusedHalves(uint32_t a, uint32_t b, uint32_t c) {
  const auto one = [](uint32_t x, uint32_t y, uint32_t z) -> uint32_t {
    const auto of = [](uint32_t bits) { return halfToFloat(static_cast<uint16_t>(bits & 0xffffu)); };
    return floatToHalf(of(x) * of(y) + of(z));
  };
  return one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16;
}

template <class Value>
Value loadValue(const void* from) {
  Value value;
  std::memcpy(&value, from, sizeof(Value));
  return value;
}
inline uint4 load16Once(const void* from) { return loadValue<uint4>(from); }
inline uint4 load16(const void* from) { return loadValue<uint4>(from); }

struct SharedPlace {
  uint8_t* at;
  SharedPlace operator+(int bytes) const { return {at + bytes}; }
};
inline SharedPlace sharedPlace(void* shared) { return {static_cast<uint8_t*>(shared)}; }
inline uint4 load16(SharedPlace from) { return loadValue<uint4>(from.at); }
inline uint2 load8(SharedPlace from) { return loadValue<uint2>(from.at); }
inline uint32_t load2(SharedPlace from) { return loadValue<uint16_t>(from.at); }
inline void store16(SharedPlace to, const uint4& value) { std::memcpy(to.at, &value, sizeof(value)); }

// Four 8 x 8 matrices of two-byte values: matrix i has its rows at the addresses of lanes 8i .. 8i + 7, and
// register i of lane l gets the values 2 (l % 4) and the next one of its row l / 4.
inline void loadMatrices(uint32_t (&out)[4], const void* row) {
  struct Brought {
    const void* row;
    uint32_t* out;
  } mine = {row, out};
  emulation::warpOperation(
      [](void** ofLane) {
        for (int lane = 0; lane < emulation::kWarpSize; lane++) {
          for (int matrix = 0; matrix < 4; matrix++) {
            const auto* from = static_cast<const Brought*>(ofLane[8 * matrix + lane / 4]);
            std::memcpy(static_cast<Brought*>(ofLane[lane])->out + matrix,
                        static_cast<const uint8_t*>(from->row) + lane % 4 * 4, 4);
          }
        }
      },
      &mine);
}

// The same, but register i of lane l gets the values 2 (l % 4) and the next one of column l / 4.
inline void loadTransposed(uint32_t (&out)[4], const void* row) {
  struct Brought {
    const void* row;
    uint32_t* out;
  } mine = {row, out};
  emulation::warpOperation(
      [](void** ofLane) {
        for (int lane = 0; lane < emulation::kWarpSize; lane++) {
          for (int i = 0; i < 8; i++) {
            const auto* from = static_cast<const Brought*>(ofLane[i / 2 * 8 + lane % 4 * 2 + i % 2]);
            auto* to = static_cast<Brought*>(ofLane[lane])->out + i / 2;
            std::memcpy(reinterpret_cast<uint8_t*>(to) + i % 2 * 2,
                        static_cast<const uint8_t*>(from->row) + lane / 4 * 2, 2);
          }
        }
      },
      &mine);
}

// FP16 to float32, by a table: fragments are widened one by one, millions of them in a check.
const float* halfTable();

struct HalfPair {
  const float* table = halfTable();
  float operator()(uint32_t pair, int second) const { return table[second ? pair >> 16 : pair & 0xffffu]; }
};
struct BfloatPair {
  float operator()(uint32_t pair, int second) const {
    return bitsFloat(second ? pair & 0xffff0000u : pair << 16);
  }
};

// c += a * b over kSteps times 8 values of k.
template <int kSteps, class Pair>
void multiplyFragments(float (&c)[4], const uint32_t* a, const uint32_t* b) {
  struct Brought {
    float* c;
    const uint32_t* a;
    const uint32_t* b;
  } mine = {c, a, b};
  emulation::warpOperation(
      [](void** ofLane) {
        const auto of = [&](int lane) { return static_cast<const Brought*>(ofLane[lane]); };
        const Pair value;
        float rows[16][8 * kSteps];
        float columns[8][8 * kSteps];
        for (int lane = 0; lane < emulation::kWarpSize; lane++) {
          for (int step = 0; step < kSteps; step++) {
            for (int second = 0; second < 2; second++) {
              const int k = 8 * step + lane % 4 * 2 + second;
              rows[lane / 4][k] = value(of(lane)->a[2 * step], second);
              rows[lane / 4 + 8][k] = value(of(lane)->a[2 * step + 1], second);
              columns[lane / 4][k] = value(of(lane)->b[step], second);
            }
          }
        }
        for (int lane = 0; lane < emulation::kWarpSize; lane++) {
          for (int i = 0; i < 4; i++) {
            const float* row = rows[lane / 4 + i / 2 * 8];
            const float* column = columns[lane % 4 * 2 + i % 2];
            float sum = of(lane)->c[i];
            for (int k = 0; k < 8 * kSteps; k++) sum += row[k] * column[k];
            of(lane)->c[i] = sum;
          }
        }
      },
      &mine);
}
inline void multiply16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiplyFragments<2, HalfPair>(c, a, b);
}
inline void multiplyBfloats16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiplyFragments<2, BfloatPair>(c, a, b);
}
inline void multiply16x8x8(float (&c)[4], const uint32_t* a, uint32_t b) {
  multiplyFragments<1, HalfPair>(c, a, &b);
}

// 16 bytes, or zeros.
inline void copyAsync16(void* shared, const void* global, bool valid) {
  static const uint4 zeros = {};
  emulation::copyLater(shared, valid ? global : &zeros, 16);
}
inline void copyAsync16(SharedPlace shared, const void* global) { copyAsync16(shared.at, global, true); }
inline void copyAsync16If(bool condition, SharedPlace shared, const void* global) {
  if (condition) copyAsync16(shared, global);
}
inline void commitCopies() { emulation::commitCopies(); }
template <int kPending>
void waitCopies() {
  emulation::waitCopies(kPending);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t sharedBytes, cudaStream_t stream,
            const Arguments&... arguments) {
  emulation::enqueueGrid(stream, grid, {static_cast<unsigned int>(threads), 1, 1}, sharedBytes,
                         [=] { kernel(arguments...); });
}

}  // namespace glm_relay::cuda
