// The two ops of a mixture of experts; bind.cpp registers them.
//
//     x_rows    [ rows of expert 1 | rows of expert 3 | ... ]      a row for each (token, expert), expert by expert
//     counts      0, 2, 0, 3, ...                                  rows of each expert, on the host
//     gate_up   [ expert 0 | expert 1 | ... ]                      an expert with no rows is not read

#pragma once

#include "bind.h"
#include "bind_rows.h"

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

namespace {

// The experts' matrices, one below the other: each has `out` rows, and takes `pitch` of them.
struct Stacked {
  const Tensor &weight, &like;
  const Optional& bias;
  int64_t out, pitch;

  void check_shape(const char* op, const char* name, int64_t experts, int64_t in) const {
    check(op, name, weight, 2, like.scalar_type());
    check_size(op, name, weight.size(0), experts * pitch);
    check_size(op, name, weight.size(1), in);
    if (!bias) return;
    check(op, name, *bias, 1, like.scalar_type());
    check_size(op, name, bias->size(0), experts * pitch);
  }

  // y = x W^T + bias for the rows of each expert.
  void multiply(const Tensor& x, Tensor& y, const std::vector<int64_t>& counts, Stream stream) const {
    int64_t row = 0, in = weight.size(1), width = weight.element_size();
    for (size_t expert = 0; expert < counts.size(); row += counts[expert++]) {
      int64_t first = static_cast<int64_t>(expert) * pitch;
      linear({data<char>(x) + row * in * width, data<char>(weight) + first * in * width,
              bias ? data<char>(*bias) + first * width : nullptr,
              static_cast<char*>(y.mutable_data_ptr()) + row * out * width, static_cast<int>(counts[expert]),
              static_cast<int>(in), static_cast<int>(out), dtype_of("experts", x)},
             stream);
    }
  }
};

}  // namespace

inline Tensor mix(const Tensor& x_rows, const std::vector<int64_t>& counts, const Tensor& place, const Tensor& weights,
                  const Tensor& gate_up, const Optional& gate_up_bias, const Tensor& down, const Optional& down_bias,
                  const std::string& activation, int64_t stream) {
  const char* op = "experts";
  check(op, "x_rows", x_rows, 2, x_rows.scalar_type());
  check(op, "place", place, 2, ScalarType::Long);
  check(op, "weights", weights, 2, ScalarType::Float);
  int64_t pairs = x_rows.size(0), hidden = x_rows.size(1), size = down.size(1), experts = counts.size(), total = 0;
  auto pitch = [](int64_t rows) { return (rows + 15) / 16 * 16; };
  Stacked first{gate_up, x_rows, gate_up_bias, 2 * size, pitch(2 * size)}, second{down, x_rows, down_bias, hidden, pitch(hidden)};
  first.check_shape(op, "gate_up", experts, hidden);
  second.check_shape(op, "down", experts, size);
  for (int64_t count : counts) {
    STD_TORCH_CHECK(count >= 0, op, ": an expert has ", count, " rows");
    total += count;
  }
  for (int64_t found : {total, place.numel(), weights.numel()}) check_size(op, "the number of rows", found, pairs);

  Tensor both = like(x_rows, {pairs, 2 * size}), inner = like(x_rows, {pairs, size}), outputs = like(x_rows, {pairs, hidden});
  Tensor y = like(x_rows, {place.size(0), hidden});
  Call call(op);
  call.with("x_rows", x_rows).with("place", place).with("weights", weights).with("gate_up", gate_up).with("down", down);
  call.with("both", both).with("inner", inner).with("outputs", outputs).with("y", y);
  if (gate_up_bias) call.with("gate_up_bias", *gate_up_bias);
  if (down_bias) call.with("down_bias", *down_bias);
  first.multiply(x_rows, both, counts, as_stream(stream));
  if (inner.numel())
    act_and_mul({data<void>(both), inner.mutable_data_ptr(), static_cast<int>(pairs), static_cast<int>(size),
                 function_of(op, activation), 0.0f, dtype_of(op, x_rows)},
                as_stream(stream));
  second.multiply(inner, outputs, counts, as_stream(stream));
  combine({data<void>(outputs), data<float>(weights), data<int64_t>(place), y.mutable_data_ptr(),
           static_cast<int>(place.size(0)), static_cast<int>(hidden), static_cast<int>(place.size(1)),
           dtype_of(op, x_rows)},
          as_stream(stream));
  call.done();
  return y;
}

}  // namespace minillm::cuda

#define MINILLM_EXPERT_OPS(m)                                                                                 \
  m.def("route(Tensor logits, int per_token, bool renormalize, int stream) -> (Tensor, Tensor)");             \
  m.def(                                                                                                      \
      "experts(Tensor x_rows, int[] counts, Tensor place, Tensor weights, Tensor gate_up, "                   \
      "Tensor? gate_up_bias, Tensor down, Tensor? down_bias, str activation, int stream) -> Tensor")

#define MINILLM_EXPERT_KERNELS(m)         \
  m.impl("route", TORCH_BOX(&choose));    \
  m.impl("experts", TORCH_BOX(&mix))
