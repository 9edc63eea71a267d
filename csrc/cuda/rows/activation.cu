// act_and_mul, act and softcap: functions of one number, one thread per element of the result.
//
//     gate_up  [ gate 0 .. n-1 | up 0 .. n-1 ]      read once, coalesced: neighbouring threads
//     y        [ y 0 .. n-1 ]                       read neighbouring elements
//
//     act_and_mul   act(gate) * up, or gpt-oss's clamped SwiGLU
//     act, softcap  f(x): there is no `up`, and a row of the input has n numbers, not 2 n
//
// Bytes: per output, two numbers are read (one without `up`) and one is written. FLOPs: 10 to 30. Limit: memory.
// NaN stays NaN: a comparison with it is false, where fminf and fmaxf would return the other number.
// Sources: Shazeer, arXiv 2002.05202 (gates); Hendrycks & Gimpel, arXiv 1606.08415 (GELU); Gemma 2, arXiv
// 2408.00118 (softcap).

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ float gelu_tanh(float x) {
  float inner = 0.79788456f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + tanhf(inner));
}

template <Function kFunction>
__device__ __forceinline__ float apply(float x, float cap) {
  if constexpr (kFunction == Function::silu) return x / (1.0f + expf(-x));
  if constexpr (kFunction == Function::gelu) return 0.5f * x * (1.0f + erff(x * 0.70710678f));  // 1 / sqrt(2)
  if constexpr (kFunction == Function::gelu_tanh) return gelu_tanh(x);
  if constexpr (kFunction == Function::relu) return x < 0 ? 0.0f : x;
  if constexpr (kFunction == Function::softcap) return cap * tanhf(x / cap);
  return x;
}

__device__ __forceinline__ float swiglu_clamped(float gate, float up) {
  gate = gate > 7.0f ? 7.0f : gate;
  up = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
  return gate / (1.0f + expf(-1.702f * gate)) * (up + 1.0f);
}

template <class T, Function kFunction, bool kGated>
__global__ void __launch_bounds__(kThreads) activation_kernel(const __grid_constant__ ActivationArgs p) {
  int i = blockIdx.x * kThreads + threadIdx.x;
  int64_t row = blockIdx.y;
  if (i >= p.size) return;
  const T* gate = static_cast<const T*>(p.x) + row * (kGated ? 2 : 1) * p.size;
  float y, x = to_float(gate[i]);
  if constexpr (kFunction == Function::swiglu_clamped) {
    y = swiglu_clamped(x, to_float(gate[p.size + i]));
  } else {
    y = apply<kFunction>(x, p.cap);
    // act(gate) is rounded before the product, as in the reference's two ops.
    if (kGated) y = to_float(from_float<T>(y)) * to_float(gate[p.size + i]);
  }
  static_cast<T*>(p.y)[row * p.size + i] = from_float<T>(y);
}

template <Function kFunction, bool kGated>
void launch(const ActivationArgs& p, Stream stream) {
  constexpr int kMostRows = 65535;  // CUDA's limit of grid.y
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int first = 0; first < p.rows; first += kMostRows) {
      ActivationArgs part = p;
      part.rows = p.rows - first < kMostRows ? p.rows - first : kMostRows;
      part.x = static_cast<const T*>(p.x) + static_cast<int64_t>(first) * (kGated ? 2 : 1) * p.size;
      part.y = static_cast<T*>(p.y) + static_cast<int64_t>(first) * p.size;
      dim3 grid(ceil_div(p.size, kThreads), part.rows);
      LAUNCH((activation_kernel<T, kFunction, kGated>), grid, kThreads, 0, stream_of(stream), part);
    }
  });
}

}  // namespace

void act_and_mul(const ActivationArgs& p, Stream stream) {
  switch (p.function) {
    case Function::silu: return launch<Function::silu, true>(p, stream);
    case Function::gelu: return launch<Function::gelu, true>(p, stream);
    case Function::gelu_tanh: return launch<Function::gelu_tanh, true>(p, stream);
    case Function::relu: return launch<Function::relu, true>(p, stream);
    case Function::swiglu_clamped: return launch<Function::swiglu_clamped, true>(p, stream);
    case Function::softcap: return;
  }
}

void act(const ActivationArgs& p, Stream stream) {
  switch (p.function) {
    case Function::silu: return launch<Function::silu, false>(p, stream);
    case Function::gelu: return launch<Function::gelu, false>(p, stream);
    case Function::gelu_tanh: return launch<Function::gelu_tanh, false>(p, stream);
    case Function::relu: return launch<Function::relu, false>(p, stream);
    case Function::softcap: return launch<Function::softcap, false>(p, stream);
    case Function::swiglu_clamped: return;
  }
}

}  // namespace minillm::cuda
