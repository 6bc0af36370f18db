// Times of work on a GPU, and memory to work on.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/device_memory.h"

namespace glm_relay::cuda {

// The stream of all kernels that are measured.
cudaStream_t stream();

// Microseconds that one call takes, when many are enqueued one behind the other: the median of several
// batches, after a warm-up. `run` gets the number of the call, for those who change memory with it.
double microseconds(const std::function<void(int call)>& run);

// Memory of random bits. Read as FP16 numbers they are below 2 in magnitude, as int4 or int8 any.
class RandomMemory {
 public:
  explicit RandomMemory(uint64_t bytes);
  const uint8_t* at(uint64_t offset) const { return memory_.as<uint8_t>() + offset; }
  uint8_t* get() const { return memory_.as<uint8_t>(); }
  uint64_t bytes() const { return memory_.bytes(); }

 private:
  DeviceMemory memory_;
};

// Zeroed.
class ZeroMemory {
 public:
  explicit ZeroMemory(uint64_t bytes);
  template <class Value>
  Value* as() const {
    return memory_.as<Value>();
  }

 private:
  DeviceMemory memory_;
};

// What the GPU reaches when it does nothing else.
struct Limits {
  double copyBytes;            // per second, read and written
  double matrixOperations[2];  // per second, by Path; a multiply and an add are two
};
Limits measureLimits();

// One batch of matrix instructions, with nothing else; returns the operations.
double startMatrixLoop(Path path);

// The groups of benchmarks; each prints a table.
void benchProducts(const Limits& limits, Path path, bool quick);
void benchAttention(const Limits& limits, Path path);
void benchRows(const Limits& limits);
void benchExperts(const Limits& limits, Path path);

}  // namespace glm_relay::cuda
