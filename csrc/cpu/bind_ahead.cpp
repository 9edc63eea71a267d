// Whole passes over a model in one call: `last_logits` one, `decode_step` one and its draws, `decode_ahead` one for
// each token to draw.

#include <algorithm>

#include "bind.h"

namespace minillm {
namespace {

// What all are told of the model and of the first pass.
struct PassTensors {
  const Tensor &ids, &embedding, &head, &first_norm, &cos, &sin;
  const Tensor &positions, &slot_mapping, &block_table, &query_start, &kv_len;
  int64_t vocab;
  double eps, scale;
};

PassArgs read_pass(const char* op, const BoundLayers& bound, const PassTensors& t) {
  const Tensor& cache = bound.cache;
  check(op, "ids", t.ids, 1, ScalarType::Long);
  check(op, "first_norm", t.first_norm, 1, cache.scalar_type());
  check_size(op, "first_norm's length", t.first_norm.size(0), bound.hidden);
  Matrix embedding = matrix_of(op, t.embedding, t.vocab, bound.hidden, bound.dtype);
  Matrix head = matrix_of(op, t.head, t.vocab, bound.hidden, bound.dtype);
  int64_t tokens = t.ids.size(0);
  check_range(op, "id", data<int64_t>(t.ids), tokens, t.vocab);
  Batch batch = read_slots(op, t.positions, t.slot_mapping, tokens, t.cos, t.sin, cache);
  read_sequences(op, batch, t.block_table, t.query_start, t.kv_len, tokens, cache);
  for (int64_t s = 0; s < batch.num_seqs; s++)
    STD_TORCH_CHECK(batch.query_start[s + 1] > batch.query_start[s], op, ": sequence ", s, " has no rows");
  return {layers_of(bound, batch, t.cos, t.sin, t.eps, t.scale), bound.dtype, data<int64_t>(t.ids),
          embedding, head, data<void>(t.first_norm), t.vocab};
}

Tensor logits(const Tensor& ids, int64_t number, const Tensor& embedding, const Tensor& head, const Tensor& first_norm,
              int64_t vocab, const Tensor& cos, const Tensor& sin, const Tensor& positions, const Tensor& slot_mapping,
              const Tensor& block_table, const Tensor& query_start, const Tensor& kv_len, double eps, double scale) {
  const char* op = "last_logits";
  std::shared_ptr<const BoundLayers> bound = find_layers(op, number);
  PassArgs args = read_pass(op, *bound, {ids, embedding, head, first_norm, cos, sin, positions, slot_mapping,
                                         block_table, query_start, kv_len, vocab, eps, scale});
  Tensor result = like(first_norm, {args.layers.batch.num_seqs, vocab});
  last_logits(kernels(), args, result.mutable_data_ptr());
  return result;
}

std::tuple<Tensor, Tensor, Tensor> step(const Tensor& ids, int64_t number, const Tensor& embedding, const Tensor& head,
                                        const Tensor& first_norm, int64_t vocab, const Tensor& cos, const Tensor& sin,
                                        const Tensor& positions, const Tensor& slot_mapping, const Tensor& block_table,
                                        const Tensor& query_start, const Tensor& kv_len, double eps, double scale,
                                        const Tensor& keys, const Tensor& numbers, const Tensor& top_k,
                                        const Tensor& seen, const Tensor& seen_end, int64_t num_token_ids) {
  const char* op = "decode_step";
  std::shared_ptr<const BoundLayers> bound = find_layers(op, number);
  PassArgs args = read_pass(op, *bound, {ids, embedding, head, first_norm, cos, sin, positions, slot_mapping,
                                         block_table, query_start, kv_len, vocab, eps, scale});
  int64_t rows = args.layers.batch.num_seqs;
  SampleArgs draws =
      read_sampling(op, rows, vocab, args.dtype, keys, numbers, top_k, seen, seen_end, num_token_ids);
  Tensor logits = like(first_norm, {rows, vocab}), tokens = like(ids, {rows});
  Tensor finite = torch::stable::new_empty(ids, {rows}, ScalarType::Bool);
  draws.logits = data<void>(logits);
  draws.tokens = static_cast<int64_t*>(tokens.mutable_data_ptr());
  decode_step(kernels(), args, draws, logits.mutable_data_ptr(), static_cast<bool*>(finite.mutable_data_ptr()));
  return {tokens, finite, logits};
}

// Blocks and positions of every token that will be drawn, beside those of the first step.
void check_ahead(const char* op, const Batch& batch, const int64_t* depths, int64_t num_blocks, int64_t block_size,
                 int64_t max_positions) {
  for (int64_t s = 0; s < batch.num_seqs; s++) {
    STD_TORCH_CHECK(depths[s] >= 0 && (!s || depths[s] <= depths[s - 1]), op, ": depths rise at sequence ", s);
    int64_t end = batch.kv_len[s] + (depths[s] > 0 ? depths[s] - 1 : 0);  // the last draw is not fed back
    STD_TORCH_CHECK(end <= max_positions, op, ": sequence ", s, " would reach position ", end - 1, " of ",
                    max_positions);
    int64_t used = (end + block_size - 1) / block_size;
    STD_TORCH_CHECK(used <= batch.table_stride, op, ": sequence ", s, " needs ", used, " blocks, its table has ",
                    batch.table_stride);
    for (int64_t b = 0; b < used; b++) {
      int32_t block = batch.block_table[s * batch.table_stride + b];
      STD_TORCH_CHECK(block >= 0 && block < num_blocks, op, ": block ", block, " is outside 0..", num_blocks - 1);
    }
  }
}

Tensor ahead(const Tensor& ids, int64_t number, const Tensor& embedding, const Tensor& head, const Tensor& first_norm,
             int64_t vocab, const Tensor& cos, const Tensor& sin, const Tensor& positions, const Tensor& slot_mapping,
             const Tensor& block_table, const Tensor& query_start, const Tensor& kv_len, double eps, double scale,
             const Tensor& depths, const Tensor& keys, const Tensor& numbers, const Tensor& top_k,
             int64_t num_token_ids) {
  const char* op = "decode_ahead";
  std::shared_ptr<const BoundLayers> bound = find_layers(op, number);
  PassArgs first = read_pass(op, *bound, {ids, embedding, head, first_norm, cos, sin, positions, slot_mapping,
                                          block_table, query_start, kv_len, vocab, eps, scale});
  const Batch& batch = first.layers.batch;
  check(op, "depths", depths, 1, ScalarType::Long);
  check(op, "keys", keys, 2, ScalarType::Long);
  check(op, "numbers", numbers, 2, ScalarType::Double);
  check(op, "top_k", top_k, 1, ScalarType::Long);
  int64_t sequences = depths.size(0);
  STD_TORCH_CHECK(num_token_ids > 0 && num_token_ids <= vocab, op, ": num_token_ids is ", num_token_ids,
                  ", the vocabulary has ", vocab);
  check_size(op, "the number of depths", sequences, batch.num_seqs);
  check_size(op, "keys' width", keys.size(1), sequences);
  check_size(op, "numbers' length", numbers.numel(), 4 * sequences);
  check_size(op, "top_k's length", top_k.size(0), sequences);
  check_ahead(op, batch, data<int64_t>(depths), bound->cache.size(0), bound->cache.size(1), cos.size(0));
  int64_t count = sequences ? data<int64_t>(depths)[0] : 0;
  check_size(op, "keys' length", keys.size(0), count);
  for (int64_t s = 0; s < sequences; s++)
    STD_TORCH_CHECK(data<double>(numbers)[4 * s + 3] == 1.0, op, ": repetition penalties need the tokens so far");

  Tensor drawn = like(ids, {sequences, count});
  std::fill_n(static_cast<int64_t*>(drawn.mutable_data_ptr()), sequences * count, -1);
  decode_ahead(kernels(), {first, num_token_ids, data<int64_t>(depths), count, data<int64_t>(keys),
                           data<double>(numbers), data<int64_t>(top_k),
                           static_cast<int64_t*>(drawn.mutable_data_ptr())});
  return drawn;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def(
      "last_logits(Tensor ids, int number, Tensor embedding, Tensor head, Tensor first_norm, int vocab_size, "
      "Tensor cos, Tensor sin, Tensor positions, Tensor slot_mapping, Tensor block_table, Tensor query_start, "
      "Tensor kv_len, float eps, float scale) -> Tensor");
  m.def(
      "decode_step(Tensor ids, int number, Tensor embedding, Tensor head, Tensor first_norm, int vocab_size, "
      "Tensor cos, Tensor sin, Tensor positions, Tensor slot_mapping, Tensor block_table, Tensor query_start, "
      "Tensor kv_len, float eps, float scale, Tensor keys, Tensor numbers, Tensor top_k, Tensor seen, "
      "Tensor seen_end, int num_token_ids) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode_ahead(Tensor ids, int number, Tensor embedding, Tensor head, Tensor first_norm, int vocab_size, "
      "Tensor cos, Tensor sin, Tensor positions, Tensor slot_mapping, Tensor block_table, Tensor query_start, "
      "Tensor kv_len, float eps, float scale, Tensor depths, Tensor keys, Tensor numbers, Tensor top_k, "
      "int num_token_ids) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("last_logits", TORCH_BOX(&logits));
  m.impl("decode_step", TORCH_BOX(&step));
  m.impl("decode_ahead", TORCH_BOX(&ahead));
}

}  // namespace minillm
