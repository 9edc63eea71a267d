// The two ops of a mixture of experts; bind.cpp registers them.
//
//     chosen    token 0: 1 3    token 1: 3 4                       the experts of each token
//     gate_up   [ expert 0 | expert 1 | ... ]                      an expert that no token uses is not read

#pragma once

#include "bind.h"
#include "bind_rows.h"
#include "mixture.h"

namespace minillm::cuda {

inline std::tuple<Tensor, Tensor> choose(const Tensor& logits, int64_t per_token, bool renormalize, int64_t stream) {
  const char* op = "route";
  check(op, "logits", logits, 2, logits.scalar_type());
  int64_t rows = logits.size(0), experts = logits.size(1);
  STD_TORCH_CHECK(per_token > 0 && per_token <= experts, op, ": ", per_token, " of ", experts, " experts");
  std::vector<int64_t> shape = {rows, per_token};
  Tensor chosen = torch::stable::new_empty(logits, shape, ScalarType::Long);
  Tensor weights = torch::stable::new_empty(logits, shape, ScalarType::Float);
  Call call(op);
  call.with("logits", logits).with("chosen", chosen).with("weights", weights);
  route({data<void>(logits), static_cast<int64_t*>(chosen.mutable_data_ptr()),
         static_cast<float*>(weights.mutable_data_ptr()), static_cast<int>(rows), static_cast<int>(experts),
         static_cast<int>(per_token), renormalize, dtype_of(op, logits)},
        as_stream(stream));
  call.done();
  return {chosen, weights};
}

// The shape [out, in] of the experts' matrices, quantised or not.
inline std::pair<int64_t, int64_t> shape_of(const char* op, const Tensor& weight) {
  if (weight.scalar_type() == ScalarType::Byte) return quantized_shape(op, weight);
  STD_TORCH_CHECK(weight.dim() == 2, op, ": a matrix has ", weight.dim(), " dimensions, not 2");
  return {weight.size(0), weight.size(1)};
}

// One stacked matrix and its bias: `count` experts of `out` rows each, filled up to `pitch`.
inline Matrix stacked(const char* op, const char* name, const Tensor& x, const Tensor& weight, const Optional& bias,
                      int64_t count, int64_t out, int64_t in) {
  const auto [found_out, found_in] = shape_of(op, weight);
  check_size(op, name, found_out, count * expert_rows(out));
  check_size(op, name, found_in, in);
  Matrix matrix = matrix_of(op, weight, found_out, in, dtype_of(op, x));
  if (bias) {
    check(op, name, *bias, 1, x.scalar_type());
    check_size(op, name, bias->size(0), count * expert_rows(out));
  }
  matrix.bias = bias ? data<void>(*bias) : nullptr;
  return matrix;
}

inline Tensor mix_experts(const Tensor& x, const Tensor& chosen, const Tensor& weights, const Tensor& gate_up,
                          const Optional& gate_up_bias, const Tensor& down, const Optional& down_bias,
                          const std::string& activation, bool tensor_cores, int64_t stream) {
  const char* op = "experts";
  check(op, "x", x, 2, x.scalar_type());
  check(op, "chosen", chosen, 2, ScalarType::Long);
  check(op, "weights", weights, 2, ScalarType::Float);
  const int64_t rows = x.size(0), hidden = x.size(1), per_token = chosen.size(1), size = shape_of(op, down).second;
  STD_TORCH_CHECK(hidden > 0 && size > 0 && per_token > 0, op, ": experts of size ", size, " over ", hidden,
                  " numbers, ", per_token, " per token");
  for (const Tensor* t : {&chosen, &weights}) {
    check_size(op, "the number of rows", t->size(0), rows);
    check_size(op, "experts per token", t->size(1), per_token);
  }
  const int64_t count = shape_of(op, gate_up).first / expert_rows(2 * size);
  const Mixture mixture = {{count, per_token, size, false},
                           stacked(op, "gate_up", x, gate_up, gate_up_bias, count, 2 * size, hidden),
                           stacked(op, "down", x, down, down_bias, count, hidden, size),
                           function_of(op, activation), hidden, dtype_of(op, x), tensor_cores};
  Tensor y = like(x, {rows, hidden});
  if (!rows) return y;
  size_t bytes = 0, end = 0;
  MixtureScratch::cut(nullptr, mixture.experts, hidden, x.element_size(), rows, bytes);
  Tensor memory = torch::stable::new_empty(x, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
  const auto scratch = MixtureScratch::cut(static_cast<char*>(memory.mutable_data_ptr()), mixture.experts, hidden,
                                           x.element_size(), rows, end);
  Call call(op);
  mix(mixture, {data<void>(x), data<int64_t>(chosen), data<float>(weights), rows}, scratch, y.mutable_data_ptr(),
      as_stream(stream));
  call.done();
  return y;
}

}  // namespace minillm::cuda

#define MINILLM_EXPERT_OPS(m)                                                                                 \
  m.def("route(Tensor logits, int per_token, bool renormalize, int stream) -> (Tensor, Tensor)");             \
  m.def(                                                                                                      \
      "experts(Tensor x, Tensor chosen, Tensor weights, Tensor gate_up, Tensor? gate_up_bias, Tensor down, "  \
      "Tensor? down_bias, str activation, bool tensor_cores, int stream) -> Tensor")

#define MINILLM_EXPERT_KERNELS(m)         \
  m.impl("route", TORCH_BOX(&choose));    \
  m.impl("experts", TORCH_BOX(&mix_experts))
