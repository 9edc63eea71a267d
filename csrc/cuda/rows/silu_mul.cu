// silu_mul: silu(gate) * up, where silu(x) = x / (1 + exp(-x)). One thread per element.
//
//     gate_up  [ gate 0 .. n-1 | up 0 .. n-1 ]      read once, coalesced: neighbouring threads
//     y        [ y 0 .. n-1 ]                       read neighbouring elements
//
// Bytes: per output, two numbers are read and one is written. Limit: memory. Source: Shazeer, arXiv 2002.05202.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) silu_mul_kernel(const __grid_constant__ SiluMulArgs p) {
  int i = blockIdx.x * kThreads + threadIdx.x;
  int64_t row = blockIdx.y;
  if (i >= p.size) return;
  const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.size;
  float x = to_float(gate[i]);
  // silu(gate) is rounded before the product, as in the reference's two ops.
  float activated = to_float(from_float<T>(x / (1.0f + expf(-x))));
  static_cast<T*>(p.y)[row * p.size + i] = from_float<T>(activated * to_float(gate[p.size + i]));
}

}  // namespace

void silu_mul(const SiluMulArgs& p, Stream stream) {
  constexpr int kMostRows = 65535;  // CUDA's limit of grid.y
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int first = 0; first < p.rows; first += kMostRows) {
      SiluMulArgs part = p;
      part.rows = p.rows - first < kMostRows ? p.rows - first : kMostRows;
      part.gate_up = static_cast<const T*>(p.gate_up) + static_cast<int64_t>(first) * 2 * p.size;
      part.y = static_cast<T*>(p.y) + static_cast<int64_t>(first) * p.size;
      LAUNCH(silu_mul_kernel<T>, dim3(ceil_div(p.size, kThreads), part.rows), kThreads, 0, stream_of(stream), part);
    }
  });
}

}  // namespace minillm::cuda
