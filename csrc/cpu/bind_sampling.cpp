// The ops that turn logits into tokens.

#include "bind.h"

namespace minillm::cpu {

SampleArgs read_sampling(const char* op, int64_t rows, int64_t vocab, DType dtype, const SamplingTensors& t) {
  check(op, "keys", t.keys, 1, ScalarType::Long);
  check(op, "numbers", t.numbers, 2, ScalarType::Double);
  check(op, "top_k", t.top_k, 1, ScalarType::Long);
  check(op, "seen", t.seen, 1, ScalarType::Long);
  check(op, "seen_end", t.seen_end, 1, ScalarType::Long);
  check_size(op, "the number of keys", t.keys.size(0), rows);
  check_size(op, "numbers' length", t.numbers.numel(), 4 * rows);
  check_size(op, "top_k's length", t.top_k.size(0), rows);
  check_size(op, "seen_end's length", t.seen_end.size(0), rows);
  STD_TORCH_CHECK(t.num_token_ids > 0 && vocab > 0, op, ": there are no token ids");
  const int64_t* ends = data<int64_t>(t.seen_end);
  int64_t end = 0;
  for (int64_t r = 0; r < rows; r++) {
    STD_TORCH_CHECK(ends[r] >= end, op, ": seen_end falls at row ", r);
    end = ends[r];
  }
  STD_TORCH_CHECK(end <= t.seen.size(0), op, ": seen_end is ", end, ", seen has ", t.seen.size(0));
  check_range(op, "seen id", data<int64_t>(t.seen), end, INT64_MAX);
  return {nullptr, dtype, rows, vocab, t.num_token_ids, data<int64_t>(t.keys), data<double>(t.numbers), data<int64_t>(t.top_k),
          data<int64_t>(t.seen), ends, nullptr, nullptr};
}

namespace {

Tensor draw(const Tensor& logits, const Tensor& keys, const Tensor& numbers, const Tensor& top_k, const Tensor& seen,
            const Tensor& seen_end, int64_t num_token_ids) {
  const char* op = "sample";
  check(op, "logits", logits, 2, logits.scalar_type());
  SampleArgs args = read_sampling(op, logits.size(0), logits.size(1), dtype_of(op, logits),
                                  {keys, numbers, top_k, seen, seen_end, num_token_ids});
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
