// Turns run-time values into template arguments: f is called with a zero of the number type, or with the head
// size as an integral_constant.

#pragma once

#include <type_traits>

#include "dialect.h"
#include "kernels.h"

namespace minillm::cuda {

template <class F>
void with_number_type(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bfloat16{});
    case DType::f16: return f(float16{});
  }
}

template <class F>
void with_head_dim(int head_dim, F f) {
  switch (head_dim) {
    case 32: return f(std::integral_constant<int, 32>{});
    case 64: return f(std::integral_constant<int, 64>{});
    case 96: return f(std::integral_constant<int, 96>{});
    case 128: return f(std::integral_constant<int, 128>{});
    case 256: return f(std::integral_constant<int, 256>{});
  }
}

inline cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

template <class I>
constexpr I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

}  // namespace minillm::cuda
