// The ops over a whole model. `hidden` and `last_logits` run one pass, `step` runs one pass and draws tokens,
// `decode_ahead` runs one pass per token to draw.
//
// `rows` are the tensors of AttentionMetadata (minillm/ops/contract.py); `sampling` and `filters` are those of
// SamplingBatch (minillm/ops/sampling.py). The order is that of the fields there.

#include <algorithm>

#include "bind.h"

namespace minillm::cpu {
namespace {

// A new tensor of the model's dtype.
Tensor make(const BoundModel& bound, int64_t rows, int64_t columns) {
  return torch::stable::new_empty(*bound.cache, {rows, columns}, bound.dtype);
}

Tensor hidden(int64_t number, const Tensor& ids, const Tensors& rows) {
  const char* op = "hidden";
  std::shared_ptr<const BoundModel> bound = find_model(op, number);
  PassArgs args = read_pass(op, *bound, ids, rows);
  Tensor x = make(*bound, ids.size(0), bound->model.hidden);
  hidden_states(kernels(), bound->model, args, x.mutable_data_ptr());
  return x;
}

Tensor logits(int64_t number, const Tensor& ids, const Tensors& rows) {
  const char* op = "last_logits";
  std::shared_ptr<const BoundModel> bound = find_model(op, number);
  PassArgs args = read_pass(op, *bound, ids, rows);
  require_rows(op, args.batch);
  Tensor result = make(*bound, args.batch.num_seqs, bound->model.vocab);
  last_logits(kernels(), bound->model, args, result.mutable_data_ptr());
  return result;
}

std::tuple<Tensor, Tensor, Tensor> draw_step(int64_t number, const Tensor& ids, const Tensors& rows, bool all_rows,
                                             const Optional& draw_rows, const Tensors& sampling,
                                             int64_t num_token_ids) {
  const char* op = "step";
  std::shared_ptr<const BoundModel> bound = find_model(op, number);
  PassArgs args = read_pass(op, *bound, ids, rows);
  if (!all_rows) require_rows(op, args.batch);
  int64_t count = all_rows ? args.batch.num_tokens : args.batch.num_seqs, vocab = bound->model.vocab;
  const int64_t* drawn_from = read_draw_rows(op, draw_rows, count);
  int64_t draws = drawn_from ? draw_rows->size(0) : count;
  SampleArgs sampled = sample_args(read_draws(op, draws, vocab, sampling, num_token_ids), vocab, bound->model.heads.dtype);
  Tensor logits = make(*bound, count, vocab), tokens = like(ids, {draws});
  Tensor finite = torch::stable::new_empty(ids, {count}, ScalarType::Bool);
  sampled.tokens = static_cast<int64_t*>(tokens.mutable_data_ptr());
  step(kernels(), bound->model, {args, all_rows, drawn_from, sampled, logits.mutable_data_ptr(),
                                 static_cast<bool*>(finite.mutable_data_ptr())});
  return {tokens, finite, logits};
}

Tensor ahead(int64_t number, const Tensor& ids, const Tensors& rows, const Tensor& depths, const Tensor& keys,
             const Tensors& filters, int64_t num_token_ids) {
  const char* op = "decode_ahead";
  std::shared_ptr<const BoundModel> bound = find_model(op, number);
  AheadArgs args = read_ahead(op, *bound, ids, rows, depths, keys, filters, num_token_ids);
  int64_t sequences = args.first.batch.num_seqs;
  Tensor drawn = like(ids, {sequences, args.count});
  std::fill_n(static_cast<int64_t*>(drawn.mutable_data_ptr()), sequences * args.count, -1);
  decode_ahead(kernels(), bound->model, args, static_cast<int64_t*>(drawn.mutable_data_ptr()));
  return drawn;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("hidden(int model, Tensor ids, Tensor[] rows) -> Tensor");
  m.def("last_logits(int model, Tensor ids, Tensor[] rows) -> Tensor");
  m.def(
      "step(int model, Tensor ids, Tensor[] rows, bool all_rows, Tensor? draw_rows, Tensor[] sampling, "
      "int num_token_ids) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode_ahead(int model, Tensor ids, Tensor[] rows, Tensor depths, Tensor keys, Tensor[] filters, "
      "int num_token_ids) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("hidden", TORCH_BOX(&hidden));
  m.impl("last_logits", TORCH_BOX(&logits));
  m.impl("step", TORCH_BOX(&draw_step));
  m.impl("decode_ahead", TORCH_BOX(&ahead));
}

}  // namespace minillm::cpu
