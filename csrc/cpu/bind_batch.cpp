// Reads and checks the index tensors of a step, and selects the instruction set.

#include <cstdlib>
#include <string>

#include "bind.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // an older torch (2.11 is one)
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace minillm::cpu {

namespace {

void torch_ranges(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

int64_t torch_threads() {
  uint32_t count = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return count;
}

// The kernels for the named instruction set, or for the best one of this CPU if the name is empty. Null if the CPU
// does not have the instruction set.
const Kernels* find_isa(const std::string& name) {
  for (const Isa* isa = kIsas; isa->kernels; isa++)
    if ((name.empty() || name == isa->kernels->name) && isa->runs_here()) return isa->kernels;
  return nullptr;
}

const Kernels* current = find_isa("");

// Switches to the named instruction set (the best one for "") and returns the name of the previous one.
std::string use_isa(std::string name) {
  const Kernels* found = find_isa(name);
  STD_TORCH_CHECK(found, "this processor does not have the instruction set '", name, "'");
  std::string before = current->name;
  current = found;
  return before;
}

std::string available_isas() {
  std::string names;
  for (const Isa* isa = kIsas; isa->kernels; isa++)
    if (isa->runs_here()) names += std::string(names.empty() ? "" : " ") + isa->kernels->name;
  return names;
}

}  // namespace

void (*pool_ranges)(int64_t, int64_t, int64_t, RangeBody, void*) = torch_ranges;
int64_t (*thread_count)() = torch_threads;

const Kernels& kernels() { return *current; }

Heads heads_of(const Tensor& cache, int64_t num_heads, DType dtype) {
  return {num_heads, cache.size(2), cache.size(3), cache.size(1), dtype};
}

Batch read_slots(const char* op, const Tensor& positions, const Tensor& slot_mapping, int64_t num_tokens,
                 int64_t max_positions, const Tensor& cache) {
  check(op, "positions", positions, 1, ScalarType::Long);
  check(op, "slot_mapping", slot_mapping, 1, ScalarType::Long);
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
  check(op, "block_table", block_table, 2, ScalarType::Int);
  check(op, "query_start", query_start, 1, ScalarType::Int);
  check(op, "kv_len", kv_len, 1, ScalarType::Int);
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

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("use_isa(str name) -> str");
  m.def("available_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CompositeExplicitAutograd, m) {
  m.impl("use_isa", TORCH_BOX(&use_isa));
  m.impl("available_isas", TORCH_BOX(&available_isas));
}

}  // namespace minillm::cpu
