// Helpers of the torch binding: checks of tensors, and one call of a launcher.
//
// The binding is compiled twice, so every CI run executes the code that runs on a GPU:
//
//     MINILLM_SIMT   namespace minillm_simt, key CPU     CPU tensors, which are registered with the simulator
//     else           namespace minillm_cuda, key CUDA    CUDA tensors; errors come from cudaGetLastError
//
// Python reports wrong shapes with the argument's name (ops/cuda.py). The checks here prevent reads and writes
// outside a tensor.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "kernels.h"

#ifdef MINILLM_SIMT
#include "../../simt/machine.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace minillm::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

#ifdef MINILLM_SIMT
constexpr bool kOnCuda = false;
#else
constexpr bool kOnCuda = true;
#endif

inline DType dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, op, ": float32, bfloat16 or float16 only");
  }
}

inline void check_size(const char* op, const char* name, int64_t found, int64_t wanted) {
  STD_TORCH_CHECK(found == wanted, op, ": ", name, " is ", found, ", not ", wanted);
}

// A dense tensor of the given type on the kernels' device.
inline void check(const char* op, const char* name, const Tensor& t, int64_t dim, ScalarType type) {
  STD_TORCH_CHECK(t.is_cuda() == kOnCuda, op, ": ", name, " is on another device than the kernel");
  STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " has another dtype than it should");
  STD_TORCH_CHECK(t.dim() == dim, op, ": ", name, " has ", t.dim(), " dimensions, not ", dim);
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " is not contiguous");
}

// [tokens, heads, head_dim] with the cache's dtype and head_dim. Rows may be strided, heads are dense.
inline void check_heads(const char* op, const char* name, const Tensor& t, const Tensor& cache) {
  STD_TORCH_CHECK(t.is_cuda() == kOnCuda, op, ": ", name, " is on another device than the kernel");
  STD_TORCH_CHECK(t.dim() == 3 && t.scalar_type() == cache.scalar_type() && t.size(2) == cache.size(3), op, ": ", name,
                  " does not fit the cache");
  STD_TORCH_CHECK(!t.numel() || (t.stride(2) == 1 && t.stride(1) == t.size(2)), op, ": heads of ", name,
                  " are not dense");
}

inline void check_caches(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  check(op, "k_cache", k_cache, 4, k_cache.scalar_type());
  check(op, "v_cache", v_cache, 4, k_cache.scalar_type());
  for (int i = 0; i < 4; i++) check_size(op, "v_cache's shape", v_cache.size(i), k_cache.size(i));
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

inline Tensor like(const Tensor& t, std::vector<int64_t> shape) { return torch::stable::new_empty(t, shape); }

inline Stream as_stream(int64_t stream) { return reinterpret_cast<Stream>(stream); }

// The tensors of one call, with the names used in errors and profiles. A kernel may access only their memory.
// `done` raises the error of the call, if there is one.
class Call {
 public:
  explicit Call(const char* op) : op_(op) {}
  Call(const Call&) = delete;

#ifdef MINILLM_SIMT
  ~Call() { simt::clear_globals(); }

  Call& with(const char* name, const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); i++) last += (t.size(i) - 1) * t.stride(i);
    simt::add_global(name, t.const_data_ptr(), t.numel() ? (last + 1) * t.element_size() : 0);
    return *this;
  }
  void done() { STD_TORCH_CHECK(!simt::machine().failed, op_, ": ", simt::machine().error.message); }
#else
  Call& with(const char*, const Tensor&) { return *this; }
  void done() {
    cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error));
  }
#endif

 private:
  const char* op_;
};

}  // namespace minillm::cuda
