// Helpers of the torch bindings: check the tensors of a call once and turn them into pointers.
//
// This folder is compiled into three libraries. Flags say which:
//
//     MINILLM_NAMESPACE   minillm       minillm_cuda                  minillm_simt
//     MINILLM_KEY         CPU           CUDA                          CPU
//     weights, caches     packed, CPU   row-major, CUDA               row-major, CPU: the simulator's global memory
//
// The index tensors of a step are on the CPU in all three. Python reports wrong shapes with the argument's name. The
// checks here prevent reads and writes outside a tensor.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kv_page.h"
#include "model.h"

// As torch's macros, for names that are macros themselves.
#define MINILLM_FRAGMENT(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#define MINILLM_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

namespace minillm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

#ifdef MINILLM_ON_CUDA
constexpr bool kOnCuda = true;
#else
constexpr bool kOnCuda = false;
#endif

#if defined(MINILLM_ON_CUDA) || defined(MINILLM_SIMT)
constexpr bool kHasFp8Kv = true;
#else
constexpr bool kHasFp8Kv = false;
#endif

inline DType dtype_of(const char* op, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, op, ": float32, bfloat16 or float16 only");
  }
}

inline DType dtype_of(const char* op, const Tensor& t) { return dtype_of(op, t.scalar_type()); }

// Names and order are those of `Activation` in minillm/config/model.py.
constexpr const char* kActivations[] = {"silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped"};

inline Activation activation_of(const char* op, const std::string& name) {
  for (int i = 0; i < 5; i++)
    if (name == kActivations[i]) return static_cast<Activation>(i);
  STD_TORCH_CHECK(false, op, ": there is no activation '", name, "'");
}

inline void check_size(const char* op, const char* name, int64_t found, int64_t wanted) {
  STD_TORCH_CHECK(found == wanted, op, ": ", name, " is ", found, ", not ", wanted);
}

// A dense tensor of `dim` dimensions of the given type.
inline void check_dense(const char* op, const char* name, const Tensor& t, int64_t dim, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " has another dtype than it should");
  STD_TORCH_CHECK(t.dim() == dim, op, ": ", name, " has ", t.dim(), " dimensions, not ", dim);
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " is not contiguous");
}

// The same, on the kernels' device.
inline void check(const char* op, const char* name, const Tensor& t, int64_t dim, ScalarType type) {
  STD_TORCH_CHECK(t.is_cuda() == kOnCuda, op, ": ", name, " is on another device than the kernel");
  check_dense(op, name, t, dim, type);
}

// The same, on the CPU.
inline void check_host(const char* op, const char* name, const Tensor& t, int64_t dim, ScalarType type) {
  STD_TORCH_CHECK(!t.is_cuda(), op, ": ", name, " is not on the CPU");
  check_dense(op, name, t, dim, type);
}

// A cache of codes has `head_dim` codes and the four bytes of a scale in place of `head_dim` numbers (kv_page.h).
inline KvCodes kv_codes_of(const Tensor& cache) {
  switch (cache.scalar_type()) {
    case ScalarType::Char: return KvCodes::int8;
    case ScalarType::Float8_e4m3fn: return KvCodes::fp8;
    default: return KvCodes::none;
  }
}
inline bool has_codes(const Tensor& cache) { return kv_codes_of(cache) != KvCodes::none; }
inline int64_t head_dim_of(const Tensor& cache) { return cache.size(3) - (has_codes(cache) ? kScaleBytes : 0); }

// [tokens, heads, head_dim] with the cache's dtype, if that is not of codes, and head_dim. Rows may be strided, heads
// are dense.
inline void check_heads(const char* op, const char* name, const Tensor& t, const Tensor& cache) {
  STD_TORCH_CHECK(t.is_cuda() == kOnCuda, op, ": ", name, " is on another device than the kernel");
  bool same_type = has_codes(cache) || t.scalar_type() == cache.scalar_type();
  STD_TORCH_CHECK(t.dim() == 3 && same_type && t.size(2) == head_dim_of(cache), op, ": ", name,
                  " does not fit the cache");
  STD_TORCH_CHECK(!t.numel() || (t.stride(2) == 1 && t.stride(1) == t.size(2)), op, ": heads of ", name,
                  " are not dense");
}

inline void check_caches(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  check(op, "k_cache", k_cache, 4, k_cache.scalar_type());
  check(op, "v_cache", v_cache, 4, k_cache.scalar_type());
  for (int i = 0; i < 4; i++) check_size(op, "v_cache's shape", v_cache.size(i), k_cache.size(i));
  STD_TORCH_CHECK(kHasFp8Kv || kv_codes_of(k_cache) != KvCodes::fp8, op, ": there are no kernels for a cache of fp8 here");
  int64_t dim = head_dim_of(k_cache);
  STD_TORCH_CHECK(dim % 2 == 0, op, ": head_dim ", dim, " is odd");
  STD_TORCH_CHECK(!has_codes(k_cache) || (dim > 0 && dim % kScaleBytes == 0), op, ": a cache of codes has head_dim ", dim,
                  ", no multiple of ", kScaleBytes);
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

inline void check_range(const char* op, const char* name, const int64_t* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; i++)
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < limit, op, ": ", name, " ", values[i], " is outside 0..", limit - 1);
}

inline Tensor like(const Tensor& t, std::vector<int64_t> shape) { return torch::stable::new_empty(t, shape); }

// Tables of at most head_dim / 2 columns.
inline RopeTables read_rope(const char* op, const Tensor& cos, const Tensor& sin, int64_t head_dim) {
  check(op, "cos", cos, 2, ScalarType::Float);
  check(op, "sin", sin, 2, ScalarType::Float);
  STD_TORCH_CHECK(2 * cos.size(1) <= head_dim, op, ": cos's width is ", cos.size(1), ", more than half of ", head_dim);
  check_size(op, "sin's width", sin.size(1), cos.size(1));
  check_size(op, "sin's length", sin.size(0), cos.size(0));
  return {data<float>(cos), data<float>(sin), cos.size(1)};
}

inline LayerCache cache_of(const Tensor& k_cache, const Tensor& v_cache) {
  return {k_cache.mutable_data_ptr(), v_cache.mutable_data_ptr()};
}

inline Heads heads_of(const Tensor& cache, int64_t num_heads, DType dtype) {
  return {num_heads, cache.size(2), head_dim_of(cache), cache.size(1), dtype, kv_codes_of(cache)};
}

// Checks a matrix [out, in] for a product with activations of `dtype`. Each library defines it for its own layout.
Matrix matrix_of(const char* op, const Tensor& weight, int64_t out, int64_t in, DType dtype);

// The same for a quantised matrix, a tensor of bytes on any device (codes_layout.h, bind_codes.cpp).
Matrix quantized_matrix(const char* op, const Tensor& packed, int64_t out, int64_t in, DType dtype);
std::pair<int64_t, int64_t> quantized_shape(const char* op, const Tensor& packed);  // (out, in)

}  // namespace minillm
