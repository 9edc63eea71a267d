// The torch ops of a mixture of experts.

#include "bind.h"

namespace minillm::cpu {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor> route(const Tensor& logits, int64_t per_token, bool renormalize) {
  const char* op = "route";
  check(op, "logits", logits, 2, logits.scalar_type());
  int64_t rows = logits.size(0), count = logits.size(1);
  STD_TORCH_CHECK(per_token > 0 && per_token <= count, op, ": ", per_token, " of ", count, " experts");
  Tensor chosen = torch::stable::new_empty(logits, {rows, per_token}, ScalarType::Long);
  Tensor weights = torch::stable::new_empty(logits, {rows, per_token}, ScalarType::Float);
  kernels().route({data<void>(logits), rows, count, per_token, renormalize,
                   static_cast<int64_t*>(chosen.mutable_data_ptr()), static_cast<float*>(weights.mutable_data_ptr()),
                   dtype_of(op, logits)});
  return {chosen, weights};
}

// The matrix of `count` experts with `size` outputs each, and its bias.
Matrix stacked(const char* op, const Tensor& packed, const Optional& bias, int64_t count, int64_t size, int64_t in,
               DType dtype, ScalarType type) {
  Matrix matrix = matrix_of(op, packed, count * expert_rows(size), in, dtype);
  if (bias) {
    check(op, "bias", *bias, 1, type);
    check_size(op, "bias's length", bias->size(0), count * expert_rows(size));
    matrix.bias = data<void>(*bias);
  }
  return matrix;
}

// `chosen` decides which memory is read, and in which order a row is summed.
void check_chosen(const char* op, const Tensor& chosen, int64_t count) {
  const int64_t *ids = data<int64_t>(chosen), per_token = chosen.size(1);
  check_range(op, "expert", ids, chosen.numel(), count);
  for (int64_t i = 0; i < chosen.numel(); i++)
    STD_TORCH_CHECK(i % per_token == 0 || ids[i] > ids[i - 1], op, ": the experts of row ", i / per_token,
                    " do not rise");
}

Tensor run_experts(const Tensor& x, const Tensor& chosen, const Tensor& weights, const Tensor& gate_up,
                   const Optional& gate_up_bias, const Tensor& down, const Optional& down_bias, int64_t count,
                   int64_t size, std::string activation) {
  const char* op = "experts";
  DType dtype = dtype_of(op, x);
  check(op, "x", x, 2, x.scalar_type());
  check(op, "chosen", chosen, 2, ScalarType::Long);
  check(op, "weights", weights, 2, ScalarType::Float);
  int64_t rows = x.size(0), hidden = x.size(1), per_token = chosen.size(1);
  STD_TORCH_CHECK(count > 0 && size > 0, op, ": ", count, " experts of size ", size);
  check_size(op, "chosen's length", chosen.size(0), rows);
  check_size(op, "weights' length", weights.size(0), rows);
  check_size(op, "weights' width", weights.size(1), per_token);
  check_chosen(op, chosen, count);
  Tensor y = like(x, {rows, hidden});
  experts(kernels(), {data<void>(x), rows, hidden, {count, per_token, size, false}, data<int64_t>(chosen),
                      data<float>(weights),
                      stacked(op, gate_up, gate_up_bias, count, 2 * size, hidden, dtype, x.scalar_type()),
                      stacked(op, down, down_bias, count, hidden, size, dtype, x.scalar_type()),
                      activation_of(op, activation), y.mutable_data_ptr(), dtype});
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("route(Tensor logits, int per_token, bool renormalize) -> (Tensor, Tensor)");
  m.def(
      "experts(Tensor x, Tensor chosen, Tensor weights, Tensor gate_up, Tensor? gate_up_bias, Tensor down, "
      "Tensor? down_bias, int count, int size, str activation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("route", TORCH_BOX(&route));
  m.impl("experts", TORCH_BOX(&run_experts));
}

}  // namespace minillm::cpu
