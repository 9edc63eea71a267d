// Filling up a step to a fixed shape, and running it (bucket.h).

#include "bucket.h"

#include <algorithm>

namespace minillm::cuda {

namespace {

// Cuts one piece of memory into arrays, or only measures if there is none. The same cuts give the host's and the
// device's addresses.
class Cutter {
 public:
  explicit Cutter(char* base) : base_(base) {}

  template <class T>
  T* next(int64_t count) {
    T* at = reinterpret_cast<T*>(base_ ? base_ + used_ : nullptr);
    used_ += aligned(count * sizeof(T));
    return at;
  }
  size_t used() const { return used_; }

 private:
  char* const base_;
  size_t used_ = 0;
};

// The arrays of a step's input, in the host's or the device's memory.
struct Input {
  int64_t *ids, *positions, *slots, *keys, *top_k, *seen_end;
  int32_t *table, *query_start, *kv_len;
  double* numbers;
  size_t bytes;

  Input(char* base, const Shape& s) {
    Cutter cut(base);
    for (int64_t** column : {&ids, &positions, &slots, &keys, &top_k, &seen_end}) *column = cut.next<int64_t>(s.rows());
    table = cut.next<int32_t>(s.seqs * s.table_width);
    query_start = cut.next<int32_t>(s.seqs + 1);
    kv_len = cut.next<int32_t>(s.seqs);
    numbers = cut.next<double>(4 * s.rows());
    bytes = cut.used();
  }

  PassArgs pass(const Shape& s) const {
    return {{positions, slots, table, s.table_width, query_start, kv_len, s.rows(), s.seqs}, ids};
  }
  Draws draws(const Shape& s) const {
    return {s.rows(), s.num_token_ids, keys, numbers, top_k, nullptr, seen_end, 0};
  }
};

// `values`, and behind them `filler` up to `count`.
template <class T>
void fill(T* to, const T* values, int64_t given, int64_t count, T filler) {
  std::copy_n(values, given, to);
  std::fill(to + given, to + count, filler);
}

void write(const Input& in, const Shape& s, const PassArgs& args, const Draws& draws) {
  const Batch& b = args.batch;
  fill<int64_t>(in.ids, args.ids, b.num_tokens, s.rows(), 0);
  fill<int64_t>(in.positions, b.positions, b.num_tokens, s.rows(), 0);
  fill<int64_t>(in.slots, b.slot_mapping, b.num_tokens, s.rows(), -1);
  fill<int64_t>(in.keys, draws.keys, draws.rows, s.rows(), 0);
  fill<int64_t>(in.top_k, draws.top_k, draws.rows, s.rows(), 0);
  std::fill_n(in.seen_end, s.rows(), int64_t{0});
  fill<int32_t>(in.kv_len, b.kv_len, b.num_seqs, s.seqs, 0);
  for (int64_t i = 0; i <= s.seqs; i++) in.query_start[i] = static_cast<int32_t>(i * s.rows_each);
  for (int64_t i = 0; i < s.seqs; i++)
    fill<int32_t>(in.table + i * s.table_width, b.block_table + i * b.table_stride, i < b.num_seqs ? b.table_stride : 0,
                  s.table_width, 0);
  std::copy_n(draws.numbers, 4 * draws.rows, in.numbers);
  for (int64_t row = draws.rows; row < s.rows(); row++) {  // greedy, without filters
    const double plain[4] = {0, 1, 0, 1};
    std::copy_n(plain, 4, in.numbers + 4 * row);
  }
}

int64_t next_power_of_4(int64_t least) {
  int64_t power = 1;
  while (power < least) power *= 4;
  return power;
}

}  // namespace

// Everything on the device, and the host's side of the two copies.
struct Buckets::Places {
  Input host_in, device_in;
  Scratch scratch;
  char *logits, *results, *host_out;
};

std::optional<Shape> Buckets::find(const PassArgs& args, const Draws& draws) const {
  const Batch& b = args.batch;
  auto size = std::lower_bound(sizes_.begin(), sizes_.end(), b.num_seqs);
  if (size == sizes_.end() || !b.num_seqs || draws.num_seen || draws.rows != b.num_tokens) return {};
  const int64_t each = b.query_start[1];
  for (int64_t s = 0; s < b.num_seqs; s++)
    if (b.query_start[s + 1] - b.query_start[s] != each) return {};
  if (!each) return {};
  return Shape{*size, each, next_power_of_4(b.table_stride), draws.num_token_ids};
}

Buckets::Places Buckets::reserve(const BoundModel& bound, const Shape& s) {
  const Model& m = bound.model;
  const Sizes sizes = {s.rows(), s.rows(), s.num_token_ids, false, s.seqs, s.table_width, tensor_cores_};
  const size_t in = Input(nullptr, s).bytes, out = aligned(s.rows() * 9);
  const size_t logits = aligned(s.rows() * m.vocab * width_of(m.heads.dtype));
  size_t scratch;
  Scratch::cut(nullptr, m, sizes, scratch);
  char* device = memory_.reserve(*bound.cache, in + scratch + logits + out);
  char *host_in = input_.reserve(in), *host_out = output_.reserve(out);
  if (device != start_ || host_in != host_in_ || host_out != host_out_) graphs_.clear();  // the memory has moved
  start_ = device, host_in_ = host_in, host_out_ = host_out;
  return {Input(host_in, s), Input(device, s), Scratch::cut(device + in, m, sizes, scratch), device + in + scratch,
          device + in + scratch + logits, host_out};
}

void Buckets::run(const BoundModel& bound, const Shape& s, const PassArgs& args, const Draws& draws, Stream stream,
                  int64_t* tokens, bool* finite, void* logits) {
  const Places at = reserve(bound, s);
  write(at.host_in, s, args, draws);
  int64_t* drawn = reinterpret_cast<int64_t*>(at.results);
  bool* looked = reinterpret_cast<bool*>(at.results + 8 * s.rows());
  auto enqueue = [&](Stream on) {
    copy_to_device(at.device_in.ids, at.host_in.ids, at.host_in.bytes, on);
    const Pass pass(bound, at.scratch, tensor_cores_, on);
    pass.logits(at.device_in.pass(s), nullptr, at.logits);
    pass.look(at.logits, s.rows(), looked);
    pass.draw(at.device_in.draws(s), at.logits, looked, drawn);
    copy_to_host(at.host_out, at.results, s.rows() * 9, on);
  };
  graphs_[s].run(stream, enqueue);
  const int64_t rows = args.batch.num_tokens;
  copy_on_device(logits, at.logits, rows * bound.model.vocab * width_of(bound.model.heads.dtype), stream);
  wait(stream);
  std::copy_n(reinterpret_cast<const int64_t*>(at.host_out), rows, tokens);
  std::copy_n(reinterpret_cast<const bool*>(at.host_out + 8 * s.rows()), rows, finite);
}

}  // namespace minillm::cuda
