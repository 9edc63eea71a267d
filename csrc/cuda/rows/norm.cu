// rms_norm, add_rms_norm and layer_norm: y = x / rms(x) * weight, one block per row, or per head of
// a row.
//
//     row of x   x0 x1 x2 ... x127 | x128 ...       thread t takes elements t, t + 128, ...; the lanes of
//                 \  \  \  ...                      a warp are summed by shuffles, the four warps
//                  t0 t1 t2 ... t127  -> 4 sums     through shared memory, always in the same order
//
// Bytes: each element is read twice and written once (on a GPU the second read comes from a cache). With kAdd
// the sum x + residual is written too. The norm uses the *rounded* sum, as if the two ops had run one after the
// other. layer_norm subtracts the mean first, and adds a bias; it reads x three times, since a variance from sums of
// x and x^2 would lose its digits where the mean is large. FLOPs: 4 per element (layer_norm: 7). Limit: memory.
// Sources: Zhang & Sennrich, arXiv 1910.07467; Ba et al., arXiv 1607.06450.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ float block_sum(float value) {
  SHARED(float, warp_sums, [kThreads / 32]);
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < kThreads / 32; warp++) sum += warp_sums[warp];
  return sum;
}

// The block's part of x: rows lie `stride` elements apart, and each has `parts` parts that are normed apart.
__device__ __forceinline__ int64_t part_start(const NormArgs& p) {
  return static_cast<int64_t>(blockIdx.x / p.parts) * p.stride + static_cast<int64_t>(blockIdx.x % p.parts) * p.size;
}

template <class T, bool kAdd>
__global__ void __launch_bounds__(kThreads) norm(const __grid_constant__ NormArgs p) {
  int64_t row = part_start(p);
  const T* x = static_cast<const T*>(p.x) + row;
  const T* residual = static_cast<const T*>(p.residual) + row;
  const T* weight = static_cast<const T*>(p.weight);
  T* sum = static_cast<T*>(p.sum) + row;
  T* y = static_cast<T*>(p.y) + row;

  float squares = 0;
  for (int i = threadIdx.x; i < p.size; i += kThreads) {
    float value = to_float(x[i]);
    if (kAdd) {
      T rounded = from_float<T>(value + to_float(residual[i]));
      sum[i] = rounded;
      value = to_float(rounded);
    }
    squares = fmaf(value, value, squares);
  }
  float scale = rsqrtf(block_sum(squares) / p.size + p.eps);

  // Each thread reads only elements that it wrote itself, so no barrier is needed.
  const T* source = kAdd ? sum : x;
  for (int i = threadIdx.x; i < p.size; i += kThreads) {
    float normed = to_float(source[i]) * scale;
    if (p.offset != 0)
      y[i] = from_float<T>(normed * (to_float(weight[i]) + p.offset));
    else  // rounded before the weight, as in Llama's code
      y[i] = from_float<T>(to_float(from_float<T>(normed)) * to_float(weight[i]));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) layer_norm_kernel(const __grid_constant__ NormArgs p) {
  int64_t row = part_start(p);
  const T* x = static_cast<const T*>(p.x) + row;
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);

  float sum = 0, squares = 0;
  for (int i = threadIdx.x; i < p.size; i += kThreads) sum += to_float(x[i]);
  float mean = block_sum(sum) / p.size;
  __syncthreads();  // the first sum has been read
  for (int i = threadIdx.x; i < p.size; i += kThreads) {
    float apart = to_float(x[i]) - mean;
    squares = fmaf(apart, apart, squares);
  }
  float scale = rsqrtf(block_sum(squares) / p.size + p.eps);
  for (int i = threadIdx.x; i < p.size; i += kThreads) {
    float normed = (to_float(x[i]) - mean) * scale;
    static_cast<T*>(p.y)[row + i] = from_float<T>(fmaf(normed, to_float(weight[i]), to_float(bias[i])));
  }
}

// Rows are dense unless the caller says otherwise.
NormArgs placed(NormArgs p) {
  if (!p.stride) p.stride = static_cast<int64_t>(p.parts) * p.size;
  return p;
}

}  // namespace

void rms_norm(const NormArgs& p, Stream stream) {
  if (p.rows == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.residual)
      LAUNCH((norm<T, true>), p.rows * p.parts, kThreads, 0, stream_of(stream), placed(p));
    else
      LAUNCH((norm<T, false>), p.rows * p.parts, kThreads, 0, stream_of(stream), placed(p));
  });
}

void layer_norm(const NormArgs& p, Stream stream) {
  if (p.rows == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(layer_norm_kernel<T>, p.rows * p.parts, kThreads, 0, stream_of(stream), placed(p));
  });
}

}  // namespace minillm::cuda
