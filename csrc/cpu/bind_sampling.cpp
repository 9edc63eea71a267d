// The ops that turn logits into tokens.

#include "bind.h"

namespace minillm::cpu {

SampleArgs sample_args(const Draws& d, int64_t vocab, DType dtype) {
  return {nullptr, dtype, d.rows, vocab, d.num_token_ids, d.keys, d.numbers, d.top_k, d.seen, d.seen_end, nullptr, nullptr};
}

namespace {

Tensor draw(const Tensor& logits, const Tensor& keys, const Tensor& numbers, const Tensor& top_k, const Tensor& seen,
            const Tensor& seen_end, int64_t num_token_ids) {
  const char* op = "sample";
  check(op, "logits", logits, 2, logits.scalar_type());
  Draws draws = read_draws(op, logits.size(0), logits.size(1), {keys, numbers, top_k, seen, seen_end}, num_token_ids);
  SampleArgs args = sample_args(draws, logits.size(1), dtype_of(op, logits));
  Tensor tokens = like(keys, {logits.size(0)});
  args.logits = data<void>(logits);
  args.tokens = static_cast<int64_t*>(tokens.mutable_data_ptr());
  sample(kernels(), args);
  return tokens;
}

std::tuple<Tensor, Tensor, Tensor> logprobs(const Tensor& logits, const Tensor& tokens, int64_t top) {
  const char* op = "token_logprobs";
  check(op, "logits", logits, 2, logits.scalar_type());
  check(op, "tokens", tokens, 1, ScalarType::Long);
  int64_t rows = logits.size(0), vocab = logits.size(1);
  check_size(op, "the number of tokens", tokens.size(0), rows);
  check_range(op, "token", data<int64_t>(tokens), rows, vocab);
  STD_TORCH_CHECK(top >= 0 && top <= vocab, op, ": top is ", top, ", outside 0..", vocab);
  Tensor of_token = torch::stable::new_empty(logits, {rows}, ScalarType::Float);
  Tensor best = torch::stable::new_empty(logits, {rows, top}, ScalarType::Float);
  Tensor best_ids = like(tokens, {rows, top});
  token_logprobs(kernels(), {data<void>(logits), dtype_of(op, logits), rows, vocab, top, data<int64_t>(tokens),
                  static_cast<float*>(of_token.mutable_data_ptr()), static_cast<float*>(best.mutable_data_ptr()),
                  static_cast<int64_t*>(best_ids.mutable_data_ptr())});
  return {of_token, best, best_ids};
}

Tensor finite(const Tensor& logits) {
  const char* op = "finite_rows";
  check(op, "logits", logits, 2, logits.scalar_type());
  Tensor result = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Bool);
  finite_rows({data<void>(logits), dtype_of(op, logits), logits.size(0), logits.size(1),
               static_cast<bool*>(result.mutable_data_ptr())});
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def(
      "sample(Tensor logits, Tensor keys, Tensor numbers, Tensor top_k, Tensor seen, Tensor seen_end, "
      "int num_token_ids) -> Tensor");
  m.def("finite_rows(Tensor logits) -> Tensor");
  m.def("token_logprobs(Tensor logits, Tensor tokens, int top) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("sample", TORCH_BOX(&draw));
  m.impl("finite_rows", TORCH_BOX(&finite));
  m.impl("token_logprobs", TORCH_BOX(&logprobs));
}

}  // namespace minillm::cpu
