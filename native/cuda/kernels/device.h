// The words in which kernels are written: CUDA's, plus the instructions that CUDA has no name for. Without
// nvcc they come from the emulation (test/native/cuda_emulation), so that every kernel also runs on a host.
//
// Products and sums stand in the source as they are computed: nvcc is told not to fuse (-fmad=false), and a
// fused one is written fmaf.
#pragma once

#ifdef __CUDACC__

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "cuda/kernels/kernels.h"

namespace glm_relay::cuda {

// Of the block, as many bytes as the launch names, on a multiple of 128.
__device__ __forceinline__ uint8_t* sharedMemory() {
  extern __shared__ __align__(128) uint8_t glmRelayShared[];
  return glmRelayShared;
}

__device__ __forceinline__ uint16_t halfBits(float x) { return __half_as_ushort(__float2half_rn(x)); }
__device__ __forceinline__ float halfValue(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// Two FP16 numbers each.
__device__ __forceinline__ uint32_t subtractHalves(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
__device__ __forceinline__ uint32_t multiplyHalves(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// Two numbers as a pair of FP16, the first one low.
__device__ __forceinline__ uint32_t packHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
// x, of which the compiler knows nothing: what is computed from it in a loop is not kept in registers
// instead.
__device__ __forceinline__ int computedAnew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
// 2^x, within two units of the last place; 0 of minus infinity, 1 of 0.
__device__ __forceinline__ float exp2Fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// a * b + c, rounded once.
__device__ __forceinline__ uint32_t fusedHalves(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// `Once`: no kernel writes what is there, and nobody on this multiprocessor reads it again.
__device__ __forceinline__ uint4 load16Once(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
__device__ __forceinline__ uint4 load16(const void* from) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

// A place in shared memory, as the instructions take it: made once, not at every access.
struct SharedPlace {
  uint32_t at;
  __device__ __forceinline__ SharedPlace operator+(int bytes) const {
    return {at + static_cast<uint32_t>(bytes)};
  }
};
__device__ __forceinline__ SharedPlace sharedPlace(const void* shared) {
  return {static_cast<uint32_t>(__cvta_generic_to_shared(shared))};
}
__device__ __forceinline__ uint4 load16(SharedPlace from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from.at)
               : "memory");
  return v;
}
__device__ __forceinline__ uint2 load8(SharedPlace from) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from.at) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load2(SharedPlace from) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(from.at) : "memory");
  return v;
}
__device__ __forceinline__ void store16(SharedPlace to, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to.at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// Fragments are those of the PTX manual for mma.m16n8k16 and m16n8k8; the emulation draws them.
__device__ __forceinline__ void loadMatrices(uint32_t (&out)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void loadTransposed(uint32_t (&out)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void multiply16x8x8(float (&c)[4], const uint32_t* a, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

// From sm_80 on. Code for older GPUs is compiled with them and never launched there.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ __forceinline__ void multiply16x8x16(float (&c)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of bfloat16 numbers.
__device__ __forceinline__ void multiplyBfloats16x8x16(float (&c)[4], const uint32_t (&a)[4],
                                                       const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Two numbers as a pair of bfloat16, the first one low.
__device__ __forceinline__ uint32_t packBfloats(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// 16 bytes, or zeros.
__device__ __forceinline__ void copyAsync16(void* shared, const void* global, bool valid) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copyAsync16(SharedPlace shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared.at), "l"(global) : "memory");
}
// As a predicate of the instruction: around a branch the compiler would let the warp meet again.
__device__ __forceinline__ void copyAsync16If(bool condition, SharedPlace shared, const void* global) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p cp.async.cg.shared.global [%0], [%1], 16;\n}" ::"r"(
          shared.at),
      "l"(global), "r"(static_cast<int>(condition))
      : "memory");
}
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#else
__device__ __forceinline__ void multiply16x8x16(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {
  __trap();
}
__device__ __forceinline__ void multiplyBfloats16x8x16(float (&)[4], const uint32_t (&)[4],
                                                       const uint32_t (&)[2]) {
  __trap();
}
__device__ __forceinline__ uint32_t packBfloats(float, float) {
  __trap();
  return 0;
}
__device__ __forceinline__ void copyAsync16(void*, const void*, bool) { __trap(); }
__device__ __forceinline__ void copyAsync16(SharedPlace, const void*) { __trap(); }
__device__ __forceinline__ void copyAsync16If(bool, SharedPlace, const void*) { __trap(); }
__device__ __forceinline__ void commitCopies() { __trap(); }
template <int kPending>
__device__ __forceinline__ void waitCopies() {
  __trap();
}
#endif

// A kernel may begin while the one before it in its stream ends (launch). Every kernel calls awaitPrevious()
// before it reads what others write or writes at all, in all of its threads: everything before it has run
// then.
__device__ __forceinline__ void awaitPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The kernel behind this one may begin as soon as blocks of this one leave room for it.
__device__ __forceinline__ void beginNext() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The line that `at` lies in is on its way to the L2 cache, where kernels begin early: others still run then.
__device__ __forceinline__ void prefetchToL2(const void* at) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// Starts a kernel with blocks of `threads` threads, a whole number of warps.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t sharedBytes, cudaStream_t stream,
            const Arguments&... arguments) {
  if (!kernelsBeginEarly) {
    kernel<<<grid, threads, sharedBytes, stream>>>(arguments...);
    return;
  }
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned int>(threads));
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace glm_relay::cuda

#else
#include "device_emulation.h"
#endif

namespace glm_relay::cuda {

constexpr int kWarp = 32;

// What most kernels begin with.
__device__ __forceinline__ void enterKernel() {
  awaitPrevious();
  beginNext();
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int laneOfThread() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warpOfThread() { return static_cast<int>(threadIdx.x) / kWarp; }

// bfloat16, to nearest even; a NaN stays one.
__device__ __forceinline__ uint16_t bfloatBits(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
__device__ __forceinline__ float bfloatValue(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

// In every lane the same, in an order that never changes.
__device__ __forceinline__ float warpSum(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}
__device__ __forceinline__ float warpMax(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, mask));
  }
  return value;
}
__device__ __forceinline__ uint32_t warpMax(uint32_t value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// Threads of a block that works on one row, or on some of its columns.
constexpr int kRowThreads = 256;

}  // namespace glm_relay::cuda
