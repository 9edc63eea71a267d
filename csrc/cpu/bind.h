// Between torch and the kernels: tensors in, pointers out, everything checked once on the way.
//
// Python reports mistakes in shapes with the argument's name (ops/cpu.py). What is checked here is what would
// otherwise read or write outside a tensor.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace minillm::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& kernels();  // of the instruction set in use

inline DType dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, op, ": float32, bfloat16 or float16 only");
  }
}

// Whether a matrix [out, in] in `dtype` may stand for one in `wide`: a padded pair would add a zero too many.
inline bool narrower(DType dtype, DType wide, int64_t in) {
  return dtype == DType::bf16 && wide == DType::f32 && in % 2 == 0;
}

// A dense tensor of `dim` dimensions of the given type.
inline void check(const char* op, const char* name, const Tensor& t, int64_t dim, ScalarType type) {
  STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " has another dtype than it should");
  STD_TORCH_CHECK(t.dim() == dim, op, ": ", name, " has ", t.dim(), " dimensions, not ", dim);
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " is not contiguous");
}

inline void check_size(const char* op, const char* name, int64_t found, int64_t wanted) {
  STD_TORCH_CHECK(found == wanted, op, ": ", name, " is ", found, ", not ", wanted);
}

// Rows that may be strided: [tokens, heads, head_dim] with dense heads.
inline void check_heads(const char* op, const char* name, const Tensor& t, const Tensor& cache) {
  STD_TORCH_CHECK(t.dim() == 3 && t.scalar_type() == cache.scalar_type() && t.size(2) == cache.size(3), op, ": ", name,
                  " does not fit the cache");
  STD_TORCH_CHECK(!t.numel() || (t.stride(2) == 1 && t.stride(1) == t.size(2)), op, ": heads of ", name,
                  " are not dense");
}

inline void check_caches(const char* op, const Tensor& k_cache, const Tensor& v_cache) {
  check(op, "k_cache", k_cache, 4, k_cache.scalar_type());
  check(op, "v_cache", v_cache, 4, k_cache.scalar_type());
  for (int i = 0; i < 4; i++) check_size(op, "v_cache's shape", v_cache.size(i), k_cache.size(i));
  STD_TORCH_CHECK(k_cache.size(3) % 2 == 0, op, ": head_dim ", k_cache.size(3), " is odd");
}

inline LayerCache cache_of(const Tensor& k_cache, const Tensor& v_cache) {
  return {k_cache.mutable_data_ptr(), v_cache.mutable_data_ptr()};
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

inline void check_rope(const char* op, const Tensor& cos, const Tensor& sin, int64_t head_dim) {
  check(op, "cos", cos, 2, ScalarType::Float);
  check(op, "sin", sin, 2, ScalarType::Float);
  check_size(op, "cos's width", cos.size(1), head_dim / 2);
  check_size(op, "sin's width", sin.size(1), cos.size(1));
  check_size(op, "sin's length", sin.size(0), cos.size(0));
}

// The index tensors of a step, checked against the cache and the number of positions. `read_sequences` adds to
// what `read_slots` has read.
Batch read_slots(const char* op, const Tensor& positions, const Tensor& slot_mapping, int64_t num_tokens,
                 int64_t max_positions, const Tensor& cache);
void read_sequences(const char* op, Batch& batch, const Tensor& block_table, const Tensor& query_start,
                    const Tensor& kv_len, const Tensor& cache);
Heads heads_of(const Tensor& cache, int64_t num_heads, DType dtype);

// A model's weights and caches, checked once and kept (bind_weights.cpp): a step then passes a number instead of
// hundreds of tensors, whose way through torch's dispatcher costs as much as a tenth of the weights.
struct BoundModel {
  Model model;
  std::vector<Layer> layers;
  std::vector<Tensor> kept;  // what the pointers point into
  std::optional<Tensor> cache;  // the first layer's keys, for the shape that all caches have
  int64_t max_positions;
};
std::shared_ptr<const BoundModel> find_model(const char* op, int64_t number);

// How to draw from each row of logits: minillm/ops/sampling.py, `SamplingBatch.tensors`.
struct SamplingTensors {
  const Tensor &keys, &numbers, &top_k, &seen, &seen_end;
  int64_t num_token_ids;
};
// The same, checked for `rows` rows of logits; where logits lie and where tokens go is left open.
SampleArgs read_sampling(const char* op, int64_t rows, int64_t vocab, DType dtype, const SamplingTensors& t);

// A packed matrix [out, in] that x of the given dtype can be multiplied with.
Matrix matrix_of(const char* op, const Tensor& packed, int64_t out, int64_t in, DType dtype);

}  // namespace minillm::cpu
