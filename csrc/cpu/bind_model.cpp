// The ops over a whole model. `hidden` and `last_logits` run one pass, `decode_step` runs one pass and draws tokens,
// `decode_ahead` runs one pass per token to draw.
//
// `rows` are the tensors of AttentionMetadata (minillm/ops/contract.py); `sampling` and `filters` are those of
// SamplingBatch (minillm/ops/sampling.py). The order is that of the fields there.

#include <algorithm>

#include "bind.h"

namespace minillm::cpu {
namespace {

using Tensors = std::vector<Tensor>;

PassArgs read_pass(const char* op, const BoundModel& bound, const Tensor& ids, const Tensors& rows) {
  check(op, "ids", ids, 1, ScalarType::Long);
  check_size(op, "the number of tensors about the rows", rows.size(), 5);
  check_range(op, "id", data<int64_t>(ids), ids.size(0), bound.model.vocab);
  Batch batch = read_slots(op, rows[0], rows[1], ids.size(0), bound.max_positions, *bound.cache);
  read_sequences(op, batch, rows[2], rows[3], rows[4], *bound.cache);
  return {batch, data<int64_t>(ids)};
}

// For ops that return one result per sequence: no sequence may be empty.
void require_rows(const char* op, const Batch& batch) {
  for (int64_t s = 0; s < batch.num_seqs; s++)
    STD_TORCH_CHECK(batch.query_start[s + 1] > batch.query_start[s], op, ": sequence ", s, " has no rows");
}

// A new tensor of the model's dtype.
Tensor make(const BoundModel& bound, int64_t rows, int64_t columns) { return like(*bound.cache, {rows, columns}); }

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

std::tuple<Tensor, Tensor, Tensor> step(int64_t number, const Tensor& ids, const Tensors& rows,
                                        const Tensors& sampling, int64_t num_token_ids) {
  const char* op = "decode_step";
  std::shared_ptr<const BoundModel> bound = find_model(op, number);
  PassArgs args = read_pass(op, *bound, ids, rows);
  require_rows(op, args.batch);
  check_size(op, "the number of tensors about sampling", sampling.size(), 5);
  int64_t count = args.batch.num_seqs, vocab = bound->model.vocab;
  SampleArgs draws =
      read_sampling(op, count, vocab, bound->model.heads.dtype,
                    {sampling[0], sampling[1], sampling[2], sampling[3], sampling[4], num_token_ids});
  Tensor logits = make(*bound, count, vocab), tokens = like(ids, {count});
  Tensor finite = torch::stable::new_empty(ids, {count}, ScalarType::Bool);
  draws.logits = data<void>(logits);
  draws.tokens = static_cast<int64_t*>(tokens.mutable_data_ptr());
  decode_step(kernels(), bound->model, args, draws, logits.mutable_data_ptr(),
              static_cast<bool*>(finite.mutable_data_ptr()));
  return {tokens, finite, logits};
}

// Checks the blocks and positions of every token that will be drawn. Those of the first step are checked already.
void check_ahead(const char* op, const BoundModel& bound, const Batch& batch, const int64_t* depths) {
  int64_t num_blocks = bound.cache->size(0), block_size = bound.cache->size(1);
  for (int64_t s = 0; s < batch.num_seqs; s++) {
    STD_TORCH_CHECK(depths[s] >= 0 && (!s || depths[s] <= depths[s - 1]), op, ": depths rise at sequence ", s);
    int64_t more = depths[s] > 0 ? depths[s] - 1 : 0;  // the last drawn token is not an input
    int64_t end = batch.kv_len[s] + more, position = batch.positions[batch.query_start[s + 1] - 1] + more;
    STD_TORCH_CHECK(position < bound.max_positions, op, ": sequence ", s, " would reach position ", position, " of ",
                    bound.max_positions);
    int64_t used = (end + block_size - 1) / block_size;
    STD_TORCH_CHECK(used <= batch.table_stride, op, ": sequence ", s, " needs ", used, " blocks, its table has ",
                    batch.table_stride);
    for (int64_t b = 0; b < used; b++) {
      int32_t block = batch.block_table[s * batch.table_stride + b];
      STD_TORCH_CHECK(block >= 0 && block < num_blocks, op, ": block ", block, " is outside 0..", num_blocks - 1);
    }
  }
}

Tensor ahead(int64_t number, const Tensor& ids, const Tensors& rows, const Tensor& depths, const Tensor& keys,
             const Tensors& filters, int64_t num_token_ids) {
  const char* op = "decode_ahead";
  std::shared_ptr<const BoundModel> bound = find_model(op, number);
  PassArgs first = read_pass(op, *bound, ids, rows);
  require_rows(op, first.batch);
  check_size(op, "the number of filters", filters.size(), 2);
  const Tensor &numbers = filters[0], &top_k = filters[1];
  check(op, "depths", depths, 1, ScalarType::Long);
  check(op, "keys", keys, 2, ScalarType::Long);
  check(op, "numbers", numbers, 2, ScalarType::Double);
  check(op, "top_k", top_k, 1, ScalarType::Long);
  int64_t sequences = depths.size(0), vocab = bound->model.vocab;
  STD_TORCH_CHECK(num_token_ids > 0 && num_token_ids <= vocab, op, ": num_token_ids is ", num_token_ids,
                  ", the vocabulary has ", vocab);
  check_size(op, "the number of depths", sequences, first.batch.num_seqs);
  check_size(op, "keys' width", keys.size(1), sequences);
  check_size(op, "numbers' length", numbers.numel(), 4 * sequences);
  check_size(op, "top_k's length", top_k.size(0), sequences);
  check_ahead(op, *bound, first.batch, data<int64_t>(depths));
  int64_t count = sequences ? data<int64_t>(depths)[0] : 0;
  check_size(op, "keys' length", keys.size(0), count);
  for (int64_t s = 0; s < sequences; s++)
    STD_TORCH_CHECK(data<double>(numbers)[4 * s + 3] == 1.0, op, ": repetition penalties need the tokens so far");

  Tensor drawn = like(ids, {sequences, count});
  std::fill_n(static_cast<int64_t*>(drawn.mutable_data_ptr()), sequences * count, -1);
  decode_ahead(kernels(), bound->model,
               {first, num_token_ids, data<int64_t>(depths), count, data<int64_t>(keys), data<double>(numbers),
                data<int64_t>(top_k), static_cast<int64_t*>(drawn.mutable_data_ptr())});
  return drawn;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("hidden(int model, Tensor ids, Tensor[] rows) -> Tensor");
  m.def("last_logits(int model, Tensor ids, Tensor[] rows) -> Tensor");
  m.def(
      "decode_step(int model, Tensor ids, Tensor[] rows, Tensor[] sampling, int num_token_ids) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "decode_ahead(int model, Tensor ids, Tensor[] rows, Tensor depths, Tensor keys, Tensor[] filters, "
      "int num_token_ids) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("hidden", TORCH_BOX(&hidden));
  m.impl("last_logits", TORCH_BOX(&logits));
  m.impl("decode_step", TORCH_BOX(&step));
  m.impl("decode_ahead", TORCH_BOX(&ahead));
}

}  // namespace minillm::cpu
