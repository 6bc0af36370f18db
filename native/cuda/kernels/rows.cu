#include <type_traits>

#include "cuda/kernels/activation.h"
#include "cuda/kernels/device.h"
#include "cuda/kernels/rounded.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/scaled_halves.h"
#include "cuda/weight_layout.h"

namespace glm_relay::cuda {

namespace {

constexpr int kPerVector = 4;
// Sums and maxima of a block's warps have room for so many.
constexpr int kMostWarps = kWarp;

// How a block of threads shares a row: each has kVectors times kPerVector columns.
template <int kThreads_, int kVectors_>
struct Shape {
  static constexpr int kThreads = kThreads_;
  static constexpr int kVectors = kVectors_;
  static constexpr int kColumns = kThreads * kVectors * kPerVector;
  static_assert(kThreads <= kMostWarps * kWarp, "a warp puts together what all warps have");

  static __device__ __forceinline__ int columnOf(int vector) {
    return (vector * kThreads + static_cast<int>(threadIdx.x)) * kPerVector;
  }
};

// Four columns of a row, as one access where the row allows it; zeros behind its end.
__device__ __forceinline__ void loadColumns(float (&to)[kPerVector], const float* row, int column, int size) {
  if (size % kPerVector == 0 && column < size) {
    const float4 all = *reinterpret_cast<const float4*>(row + column);
    to[0] = all.x;
    to[1] = all.y;
    to[2] = all.z;
    to[3] = all.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerVector; i++) to[i] = column + i < size ? row[column + i] : 0.0f;
}

__device__ __forceinline__ void storeColumns(float* row, const float (&from)[kPerVector], int column,
                                             int size) {
  if (size % kPerVector == 0) {
    if (column < size) {
      *reinterpret_cast<float4*>(row + column) = float4{from[0], from[1], from[2], from[3]};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerVector; i++) {
    if (column + i < size) row[column + i] = from[i];
  }
}

__device__ __forceinline__ void storeHalves(const HalfRows& to, const float (&from)[kPerVector], int row,
                                            int column, const RowFactor& factor) {
#pragma unroll
  for (int i = 0; i < kPerVector; i += 2) {
    if (column + i >= to.paddedColumns) continue;
    *reinterpret_cast<uint32_t*>(to.halves + halfIndex(row, column + i, to.paddedColumns)) =
        halfPair(from[i] * factor.factor, from[i + 1] * factor.factor);
  }
}

// Over all threads of the block, in all of them. `shared` has kMostWarps values and is used once.
template <class S>
__device__ __forceinline__ float sumOfBlock(float value, float* shared) {
  value = warpSum(value);
  if (laneOfThread() == 0) shared[warpOfThread()] = value;
  __syncthreads();
  return warpSum(laneOfThread() < S::kThreads / kWarp ? shared[laneOfThread()] : 0.0f);
}
template <class S>
__device__ __forceinline__ uint32_t maxOfBlock(uint32_t value, uint32_t* shared) {
  value = warpMax(value);
  if (laneOfThread() == 0) shared[warpOfThread()] = value;
  __syncthreads();
  return warpMax(laneOfThread() < S::kThreads / kWarp ? shared[laneOfThread()] : 0u);
}

// The columns of this block's row that a thread has.
template <class S>
struct Columns {
  float of[S::kVectors][kPerVector];

  __device__ __forceinline__ void load(const float* row, int size) {
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) loadColumns(of[v], row, S::columnOf(v), size);
  }
  template <class Change>
  __device__ __forceinline__ void forEach(Change change) {
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
#pragma unroll
      for (int i = 0; i < kPerVector; i++) change(of[v][i], v, i);
    }
  }

  // As float32, unless y is null, and as FP16.
  __device__ __forceinline__ void store(const HalfRows& to, float* y, int size) {
    uint32_t* shared = reinterpret_cast<uint32_t*>(sharedMemory()) + 2 * kMostWarps;
    uint32_t largest = 0;
    forEach([&](float& x, int, int) {
      const uint32_t magnitude = magnitudeBits(x);
      largest = magnitude > largest ? magnitude : largest;
    });
    const RowFactor factor(maxOfBlock<S>(largest, shared));
    const int row = static_cast<int>(blockIdx.x);
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
      const int column = S::columnOf(v);
      if (y != nullptr) storeColumns(y + static_cast<int64_t>(row) * size, of[v], column, size);
      storeHalves(to, of[v], row, column, factor);
    }
    if (threadIdx.x == 0) to.scales[row] = factor.scale;
  }
};

// Where the columns of a row come from.
struct Rows {
  const float* x;

  template <class S>
  __device__ __forceinline__ void load(Columns<S>& to, int64_t first, int size) const {
    to.load(x + first, size);
  }
};
struct Summed {
  RowSum sum;

  template <class S>
  __device__ __forceinline__ void load(Columns<S>& to, int64_t first, int size) const {
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
      const int column = S::columnOf(v);
      float base[kPerVector];
      float delta[kPerVector];
      loadColumns(base, sum.base + first, column, size);
      loadColumns(delta, sum.delta + first, column, size);
#pragma unroll
      for (int i = 0; i < kPerVector; i++)
        to.of[v][i] = rounded(fmaf(base[i], sum.scale, delta[i]), sum.dtype);
      storeColumns(sum.x + first, to.of[v], column, size);
    }
  }
};

// A parameter of the model, which no kernel writes: it is on its way while kernels in front of this one run.
template <class S>
__device__ __forceinline__ void prefetchColumns(const float* row, int size) {
#pragma unroll
  for (int v = 0; v < S::kVectors; v++) {
    if (S::columnOf(v) < size) prefetchToL2(row + S::columnOf(v));
  }
}

template <class S, class From>
struct RmsNorm {
  From from;
  const float* weight;
  float eps;

  __device__ __forceinline__ void prefetch(int size) const { prefetchColumns<S>(weight, size); }
  __device__ __forceinline__ void operator()(Columns<S>& x, int64_t first, int size) const {
    from.load(x, first, size);
    float square = 0.0f;
    x.forEach([&](float& value, int, int) { square = fmaf(value, value, square); });
    const float sum = sumOfBlock<S>(square, reinterpret_cast<float*>(sharedMemory()));
    const float r = 1.0f / sqrtf(sum / static_cast<float>(size) + eps);
    // Vector by vector: a whole row of weights beside it would not find room in the registers.
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
      float w[kPerVector];
      loadColumns(w, weight, S::columnOf(v), size);
#pragma unroll
      for (int i = 0; i < kPerVector; i++) x.of[v][i] = (x.of[v][i] * r) * w[i];
    }
  }
};

template <class S, class From>
struct LayerNorm {
  From from;
  const float* weight;
  const float* bias;
  float eps;

  __device__ __forceinline__ void prefetch(int size) const {
    prefetchColumns<S>(weight, size);
    prefetchColumns<S>(bias, size);
  }
  __device__ __forceinline__ void operator()(Columns<S>& x, int64_t first, int size) const {
    float* shared = reinterpret_cast<float*>(sharedMemory());
    from.load(x, first, size);
    float sum = 0.0f;
    x.forEach([&](float& value, int, int) { sum += value; });
    const float mean = sumOfBlock<S>(sum, shared) / static_cast<float>(size);
    float square = 0.0f;
    x.forEach([&](float& value, int v, int i) {
      value = S::columnOf(v) + i < size ? value - mean : 0.0f;
      square = fmaf(value, value, square);
    });
    const float variance = sumOfBlock<S>(square, shared + kMostWarps) / static_cast<float>(size);
    const float r = 1.0f / sqrtf(variance + eps);
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
      float w[kPerVector];
      float b[kPerVector];
      loadColumns(w, weight, S::columnOf(v), size);
      loadColumns(b, bias, S::columnOf(v), size);
#pragma unroll
      for (int i = 0; i < kPerVector; i++) x.of[v][i] = fmaf(x.of[v][i] * r, w[i], b[i]);
    }
  }
};

template <Activation kActivation>
__device__ __forceinline__ void activateColumns(float (&to)[kPerVector], const float* row, int column,
                                                int size) {
  float second[kPerVector] = {};
  loadColumns(to, row, column, size);
  if constexpr (kActivation != Activation::kGelu) loadColumns(second, row + size, column, size);
#pragma unroll
  for (int i = 0; i < kPerVector; i++) {
    const float first = to[i];
    to[i] = kActivation == Activation::kGelu        ? geluTanh(first)
            : kActivation == Activation::kGatedSilu ? silu(first) * second[i]
                                                    : first * geluErf(second[i]);
  }
}

template <class S, Activation kActivation>
struct Activate {
  const float* from;

  __device__ __forceinline__ void prefetch(int) const {}
  __device__ __forceinline__ void operator()(Columns<S>& x, int64_t first, int size) const {
    const float* row = from + (kActivation == Activation::kGelu ? 1 : 2) * first;
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) activateColumns<kActivation>(x.of[v], row, S::columnOf(v), size);
  }
};

// The same by several blocks of threads for a row, in two kernels: one block would be busy for longer with
// a row than the rest of the GPU with the product before it.
constexpr int kShareThreads = 256;
constexpr int kShareColumns = kShareThreads * kPerVector;
static_assert(kMaxRowColumns == kRowShares * kShareColumns, "a row has at most kRowShares shares");
// Shorter rows have one block.
constexpr int kSharedColumns = 4096;

__device__ __forceinline__ int shareColumn() {
  return static_cast<int>(blockIdx.x) * kShareColumns + static_cast<int>(threadIdx.x) * kPerVector;
}

template <Activation kActivation>
__global__ void __launch_bounds__(kShareThreads)
    activateShareKernel(uint32_t* maxima, float* y, const float* x, int inputs, int size) {
  enterKernel();
  uint32_t* shared = reinterpret_cast<uint32_t*>(sharedMemory());
  const int64_t row = blockIdx.y;
  const int column = shareColumn();
  float values[kPerVector];
  activateColumns<kActivation>(values, x + row * inputs * size, column, size);
  storeColumns(y + row * size, values, column, size);
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kPerVector; i++) {
    const uint32_t magnitude = magnitudeBits(values[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = warpMax(largest);
  if (laneOfThread() == 0) shared[warpOfThread()] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kShareThreads / kWarp; i++) largest = shared[i] > largest ? shared[i] : largest;
  maxima[row * kRowShares + blockIdx.x] = largest;
}

__global__ void __launch_bounds__(kShareThreads)
    halveShareKernel(const HalfRows to, const float* y, int shares, int size) {
  enterKernel();
  const int row = static_cast<int>(blockIdx.y);
  const int lane = laneOfThread();
  const RowFactor factor(warpMax(lane < shares ? to.maxima[row * kRowShares + lane] : 0u));
  const int column = shareColumn();
  float values[kPerVector];
  loadColumns(values, y + static_cast<int64_t>(row) * size, column, size);
  storeHalves(to, values, row, column, factor);
  if (blockIdx.x == 0 && threadIdx.x == 0) to.scales[row] = factor.scale;
}

template <Activation kActivation>
void activateShared(cudaStream_t stream, const HalfRows& to, float* y, const float* x, int rows, int inputs,
                    int size) {
  const int shares = (size + kShareColumns - 1) / kShareColumns;
  const dim3 grid{static_cast<unsigned int>(shares), static_cast<unsigned int>(rows), 1};
  launch(activateShareKernel<kActivation>, grid, kShareThreads, kShareThreads / kWarp * sizeof(uint32_t),
         stream, to.maxima, y, x, inputs, size);
  launch(halveShareKernel, grid, kShareThreads, 0, stream, to, static_cast<const float*>(y), shares, size);
}

template <class S>
struct Take {
  Rows from;

  __device__ __forceinline__ void prefetch(int) const {}
  __device__ __forceinline__ void operator()(Columns<S>& x, int64_t first, int size) const {
    from.load(x, first, size);
  }
};

// A block per row, whose first column is at first = row * size.
template <class S, class Operation>
__global__ void __launch_bounds__(S::kThreads)
    rowKernel(const Operation operation, const HalfRows to, float* y, int size) {
  operation.prefetch(size);
  enterKernel();
  if (to.owners != nullptr && to.owners[blockIdx.x] < 0) return;
  Columns<S> columns;
  operation(columns, static_cast<int64_t>(blockIdx.x) * size, size);
  columns.store(to, y, size);
}

template <class S, class Operation>
void startRows(cudaStream_t stream, const Operation& operation, const HalfRows& to, float* y, int rows,
               int size) {
  launch(rowKernel<S, Operation>, dim3{static_cast<unsigned int>(rows), 1, 1}, S::kThreads,
         3 * kMostWarps * sizeof(float), stream, operation, to, y, size);
}

// Calls `with` with the smallest shape that a row fits in: with few columns most threads would have none.
template <int kMost, class With>
void withShape(int size, With with) {
  if (size <= Shape<128, 1>::kColumns) return with(Shape<128, 1>{});
  if (size <= Shape<1024, 1>::kColumns) return with(Shape<1024, 1>{});
  if (size <= Shape<1024, 2>::kColumns) return with(Shape<1024, 2>{});
  if (kMost <= Shape<1024, 4>::kColumns || size <= Shape<1024, 4>::kColumns) {
    return with(Shape<1024, 4>{});
  }
  with(Shape<1024, kMost / Shape<1024, 1>::kColumns>{});
}

}  // namespace

void rmsNormRows(cudaStream_t stream, const HalfRows& to, float* y, const float* x, const RowSum* sum,
                 const float* weight, int rows, int size, float eps) {
  withShape<kMaxNormColumns>(size, [&](auto shape) {
    using S = decltype(shape);
    if (sum != nullptr) {
      return startRows<S>(stream, RmsNorm<S, Summed>{{*sum}, weight, eps}, to, y, rows, size);
    }
    startRows<S>(stream, RmsNorm<S, Rows>{{x}, weight, eps}, to, y, rows, size);
  });
}

void layerNormRows(cudaStream_t stream, const HalfRows& to, float* y, const float* x, const RowSum* sum,
                   const float* weight, const float* bias, int rows, int size, float eps) {
  withShape<kMaxNormColumns>(size, [&](auto shape) {
    using S = decltype(shape);
    if (sum != nullptr) {
      return startRows<S>(stream, LayerNorm<S, Summed>{{*sum}, weight, bias, eps}, to, y, rows, size);
    }
    startRows<S>(stream, LayerNorm<S, Rows>{{x}, weight, bias, eps}, to, y, rows, size);
  });
}

void activateRows(cudaStream_t stream, const HalfRows& to, float* y, Activation activation, const float* x,
                  int rows, int size) {
  const auto start = [&](auto ofActivation, int inputs) {
    constexpr Activation kActivation = decltype(ofActivation)::value;
    if (to.maxima != nullptr && size > kSharedColumns) {
      return activateShared<kActivation>(stream, to, y, x, rows, inputs, size);
    }
    withShape<kMaxRowColumns>(size, [&](auto shape) {
      using S = decltype(shape);
      startRows<S>(stream, Activate<S, kActivation>{x}, to, y, rows, size);
    });
  };
  switch (activation) {
    case Activation::kGatedSilu:
      return start(std::integral_constant<Activation, Activation::kGatedSilu>{}, 2);
    case Activation::kGelu:
      return start(std::integral_constant<Activation, Activation::kGelu>{}, 1);
    case Activation::kGatedGelu:
      return start(std::integral_constant<Activation, Activation::kGatedGelu>{}, 2);
  }
}

void halveRows(cudaStream_t stream, const HalfRows& to, const float* x, int rows, int size) {
  withShape<kMaxRowColumns>(size, [&](auto shape) {
    using S = decltype(shape);
    startRows<S>(stream, Take<S>{{x}}, to, static_cast<float*>(nullptr), rows, size);
  });
}

}  // namespace glm_relay::cuda
