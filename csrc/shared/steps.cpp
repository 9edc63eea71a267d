// Reads and checks the index tensors of a step. All of them are on the CPU.

#include "bound.h"

namespace minillm {

Batch read_slots(const char* op, const Tensor& positions, const Tensor& slot_mapping, int64_t num_tokens,
                 int64_t max_positions, const Tensor& cache) {
  check_host(op, "positions", positions, 1, ScalarType::Long);
  check_host(op, "slot_mapping", slot_mapping, 1, ScalarType::Long);
  check_size(op, "the number of positions", positions.size(0), num_tokens);
  check_size(op, "the number of slots", slot_mapping.size(0), num_tokens);
  Batch batch = {};
  batch.positions = data<int64_t>(positions);
  batch.slot_mapping = data<int64_t>(slot_mapping);
  batch.num_tokens = num_tokens;
  check_range(op, "position", batch.positions, num_tokens, max_positions);
  check_range(op, "slot", batch.slot_mapping, num_tokens, cache.size(0) * cache.size(1));
  return batch;
}

void read_sequences(const char* op, Batch& batch, const Tensor& block_table, const Tensor& query_start,
                    const Tensor& kv_len, const Tensor& cache) {
  check_host(op, "block_table", block_table, 2, ScalarType::Int);
  check_host(op, "query_start", query_start, 1, ScalarType::Int);
  check_host(op, "kv_len", kv_len, 1, ScalarType::Int);
  batch.num_seqs = kv_len.size(0);
  batch.table_stride = block_table.size(1);
  batch.block_table = data<int32_t>(block_table);
  batch.query_start = data<int32_t>(query_start);
  batch.kv_len = data<int32_t>(kv_len);
  check_size(op, "query_start's length", query_start.size(0), batch.num_seqs + 1);
  check_size(op, "block_table's length", block_table.size(0), batch.num_seqs);
  check_size(op, "query_start's first entry", batch.query_start[0], 0);
  check_size(op, "query_start's last entry", batch.query_start[batch.num_seqs], batch.num_tokens);
  int64_t block_size = cache.size(1), num_blocks = cache.size(0);
  for (int64_t s = 0; s < batch.num_seqs; s++) {
    int64_t rows = batch.query_start[s + 1] - batch.query_start[s], keys = batch.kv_len[s];
    STD_TORCH_CHECK(rows >= 0, op, ": query_start falls at sequence ", s);
    if (!rows) continue;
    STD_TORCH_CHECK(keys >= rows, op, ": sequence ", s, " has ", rows, " rows but kv_len ", keys);
    int64_t used = (keys + block_size - 1) / block_size;
    STD_TORCH_CHECK(used <= batch.table_stride, op, ": sequence ", s, " needs ", used, " blocks, its table has ",
                    batch.table_stride);
    for (int64_t b = 0; b < used; b++) {
      int32_t block = batch.block_table[s * batch.table_stride + b];
      STD_TORCH_CHECK(block >= 0 && block < num_blocks, op, ": block ", block, " is outside 0..", num_blocks - 1);
    }
  }
}

PassArgs read_pass(const char* op, const BoundModel& bound, const Tensor& ids, const Tensors& rows) {
  check_host(op, "ids", ids, 1, ScalarType::Long);
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

Draws read_draws(const char* op, int64_t rows, int64_t vocab, const Tensors& sampling, int64_t num_token_ids) {
  check_size(op, "the number of tensors about sampling", sampling.size(), 5);
  const Tensor &keys = sampling[0], &numbers = sampling[1], &top_k = sampling[2], &seen = sampling[3], &seen_end = sampling[4];
  check_host(op, "keys", keys, 1, ScalarType::Long);
  check_host(op, "numbers", numbers, 2, ScalarType::Double);
  check_host(op, "top_k", top_k, 1, ScalarType::Long);
  check_host(op, "seen", seen, 1, ScalarType::Long);
  check_host(op, "seen_end", seen_end, 1, ScalarType::Long);
  check_size(op, "the number of keys", keys.size(0), rows);
  check_size(op, "numbers' length", numbers.numel(), 4 * rows);
  check_size(op, "top_k's length", top_k.size(0), rows);
  check_size(op, "seen_end's length", seen_end.size(0), rows);
  STD_TORCH_CHECK(num_token_ids > 0 && vocab > 0, op, ": there are no token ids");
  const int64_t* ends = data<int64_t>(seen_end);
  int64_t end = 0;
  for (int64_t r = 0; r < rows; r++) {
    STD_TORCH_CHECK(ends[r] >= end, op, ": seen_end falls at row ", r);
    end = ends[r];
  }
  STD_TORCH_CHECK(end <= seen.size(0), op, ": seen_end is ", end, ", seen has ", seen.size(0));
  check_range(op, "seen id", data<int64_t>(seen), end, INT64_MAX);
  return {rows, num_token_ids, data<int64_t>(keys), data<double>(numbers), data<int64_t>(top_k), data<int64_t>(seen), ends,
          end};
}

const int64_t* read_draw_rows(const char* op, const Optional& rows, int64_t count) {
  if (!rows) return nullptr;
  check_host(op, "draw_rows", *rows, 1, ScalarType::Long);
  check_range(op, "draw_rows' row", data<int64_t>(*rows), rows->size(0), count);
  return data<int64_t>(*rows);
}

namespace {

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

}  // namespace

AheadArgs read_ahead(const char* op, const BoundModel& bound, const Tensor& ids, const Tensors& rows,
                     const Tensor& depths, const Tensor& keys, const Tensors& filters, int64_t num_token_ids) {
  PassArgs first = read_pass(op, bound, ids, rows);
  require_rows(op, first.batch);
  check_size(op, "the number of filters", filters.size(), 2);
  const Tensor &numbers = filters[0], &top_k = filters[1];
  check_host(op, "depths", depths, 1, ScalarType::Long);
  check_host(op, "keys", keys, 2, ScalarType::Long);
  check_host(op, "numbers", numbers, 2, ScalarType::Double);
  check_host(op, "top_k", top_k, 1, ScalarType::Long);
  int64_t sequences = depths.size(0), vocab = bound.model.vocab;
  STD_TORCH_CHECK(num_token_ids > 0 && num_token_ids <= vocab, op, ": num_token_ids is ", num_token_ids,
                  ", the vocabulary has ", vocab);
  check_size(op, "the number of depths", sequences, first.batch.num_seqs);
  check_size(op, "keys' width", keys.size(1), sequences);
  check_size(op, "numbers' length", numbers.numel(), 4 * sequences);
  check_size(op, "top_k's length", top_k.size(0), sequences);
  check_ahead(op, bound, first.batch, data<int64_t>(depths));
  int64_t count = sequences ? data<int64_t>(depths)[0] : 0;
  check_size(op, "keys' length", keys.size(0), count);
  for (int64_t s = 0; s < sequences; s++)
    STD_TORCH_CHECK(data<double>(numbers)[4 * s + 3] == 1.0, op, ": repetition penalties need the tokens so far");
  return {first, num_token_ids, data<int64_t>(depths), count, data<int64_t>(keys), data<double>(numbers), data<int64_t>(top_k)};
}

}  // namespace minillm
