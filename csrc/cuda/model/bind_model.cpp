// The torch ops over a whole model (those of csrc/cpu/bind_model.cpp, with a stream). The index tensors are on the CPU:
// they are checked there, and reach the GPU in one copy. Tokens and flags come back in one copy, the only wait of a step.
//
//     hidden, last_logits   one copy in
//     step                  one copy in, one copy out
//     decode_ahead          one copy in, one copy out, and a pass per token: a token goes from one pass to the next on
//                           the GPU

#include <algorithm>

#include "bind.h"
#include "bucket.h"
#include "codes_layout.h"

namespace minillm {
namespace {

Matrix codes_of(const char* op, const Tensor& weight, int64_t out, int64_t in, DType dtype) {
  check(op, "a quantised matrix", weight, 1, ScalarType::Byte);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 == 0, op, ": a matrix begins at no multiple of 16 bytes");
  const Matrix matrix = quantized_matrix(op, weight, out, in, dtype);
  const int64_t bytes = CodesLayout(matrix.form, in).block;
  STD_TORCH_CHECK(bytes <= INT32_MAX, op, ": 16 outputs of a quantised matrix have ", bytes, " bytes, more than 2^31");
  return matrix;
}

}  // namespace

Matrix matrix_of(const char* op, const Tensor& weight, int64_t out, int64_t in, DType dtype) {
  if (weight.scalar_type() == ScalarType::Byte) return codes_of(op, weight, out, in, dtype);
  check(op, "a matrix", weight, 2, weight.scalar_type());
  check_size(op, "a matrix's number of rows", weight.size(0), out);
  check_size(op, "a matrix's number of columns", weight.size(1), in);
  STD_TORCH_CHECK(dtype_of(op, weight) == dtype, op, ": the matrix has another dtype than the caches");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 == 0, op, ": a matrix begins at no multiple of 16 bytes");
  return {data<void>(weight), dtype, nullptr, {}};
}

DeviceState::DeviceState() : buckets(std::make_unique<cuda::Buckets>(std::vector<int64_t>{}, false)) {}
DeviceState::~DeviceState() = default;

namespace cuda {
namespace {

using Bound = std::shared_ptr<const BoundModel>;

std::mutex states_mutex;

DeviceState& state_of(const BoundModel& bound) {
  std::lock_guard lock(states_mutex);
  if (!bound.device) bound.device = std::make_shared<DeviceState>();
  return *bound.device;
}

Tensor make(const BoundModel& bound, int64_t rows, int64_t columns) {
  return torch::stable::new_empty(*bound.cache, {rows, columns}, bound.dtype);
}

// Errors of the launches of a call.
void finish(const char* op) { Call(op).done(); }

// A pass on the device: its input, its scratch memory. `more` are bytes that the caller will put beside the input,
// padding included.
class DevicePass {
 public:
  DevicePass(const BoundModel& bound, DeviceState& state, const PassArgs& args, size_t more, Stream stream)
      : bound_(bound), state_(state), stream_(stream), args_(args) {
    const Batch& b = args.batch;
    size_t bytes = more;
    for (size_t piece : {b.num_tokens * 8, b.num_tokens * 8, b.num_tokens * 8, b.num_seqs * b.table_stride * 4,
                         (b.num_seqs + 1) * 4, b.num_seqs * 4, b.num_seqs * 8})
      bytes += aligned(piece);
    state.staging.begin(*bound.cache, bytes);
    args_.ids = put(args.ids, b.num_tokens);
    args_.batch.positions = put(b.positions, b.num_tokens);
    args_.batch.slot_mapping = put(b.slot_mapping, b.num_tokens);
    args_.batch.block_table = put(b.block_table, b.num_seqs * b.table_stride);
    args_.batch.query_start = put(b.query_start, b.num_seqs + 1);
    args_.batch.kv_len = put(b.kv_len, b.num_seqs);
    if (b.num_tokens == b.num_seqs) return;  // one row per sequence: each is the last one
    std::vector<int64_t> last(b.num_seqs);
    for (int64_t s = 0; s < b.num_seqs; s++) last[s] = b.query_start[s + 1] - 1;
    last_rows_ = put(last.data(), b.num_seqs);
  }

  template <class T>
  const T* put(const T* values, int64_t count) {
    return state_.staging.put(values, count);
  }

  Draws put(const Draws& d) {
    Draws there = d;
    there.keys = put(d.keys, d.rows);
    there.numbers = put(d.numbers, 4 * d.rows);
    there.top_k = put(d.top_k, d.rows);
    there.seen = put(d.seen, d.num_seen);
    there.seen_end = put(d.seen_end, d.rows);
    return there;
  }

  // Sends the input. Then `pass` may run.
  Pass send(int64_t draws, int64_t num_token_ids, bool gathers = false) {
    state_.staging.send(stream_);
    size_t bytes;
    const Batch& b = args_.batch;
    const Sizes sizes = {b.num_tokens, draws, num_token_ids, gathers, b.num_seqs, b.table_stride, state_.tensor_cores};
    Scratch::cut(nullptr, bound_.model, sizes, bytes);
    scratch_ = Scratch::cut(state_.scratch.reserve(*bound_.cache, bytes), bound_.model, sizes, bytes);
    return Pass(bound_, scratch_, state_.tensor_cores, stream_);
  }

  const PassArgs& args() const { return args_; }
  const int64_t* last_rows() const { return last_rows_; }

 private:
  const BoundModel& bound_;
  DeviceState& state_;
  const Stream stream_;
  PassArgs args_;  // with the device's pointers
  const int64_t* last_rows_ = nullptr;
  Scratch scratch_ = {};
};

void check_ids(const char* op, int64_t num_token_ids, int64_t vocab) {
  STD_TORCH_CHECK(num_token_ids <= vocab && num_token_ids <= kMaxTokenIds, op, ": ", num_token_ids, " ids, at most ",
                  std::min<int64_t>(vocab, kMaxTokenIds));
}

size_t bytes_of(const Draws& d) {
  return aligned(d.rows * 8) * 3 + aligned(d.rows * 32) + aligned(d.num_seen * 8);
}

// From now on steps are filled up to these numbers of sequences; none: they run as they are. `tensor_cores`: the rungs
// that run on them are allowed (rungs.h).
void bind_device(int64_t number, std::vector<int64_t> sizes, bool tensor_cores, int64_t) {
  const char* op = "bind_device";
  Bound bound = find_model(op, number);
  for (size_t i = 0; i < sizes.size(); i++)
    STD_TORCH_CHECK(sizes[i] > (i ? sizes[i - 1] : 0), op, ": sizes must be positive and rise");
  DeviceState& state = state_of(*bound);
  std::lock_guard lock(state.busy);
  state.tensor_cores = tensor_cores;
  state.buckets = std::make_unique<Buckets>(sizes, tensor_cores);
}

Tensor hidden(int64_t number, const Tensor& ids, const Tensors& rows, int64_t stream) {
  const char* op = "hidden";
  Bound bound = find_model(op, number);
  PassArgs args = read_pass(op, *bound, ids, rows);
  Tensor x = make(*bound, ids.size(0), bound->model.hidden);
  if (!ids.size(0)) return x;
  DeviceState& state = state_of(*bound);
  std::lock_guard lock(state.busy);
  DevicePass on_device(*bound, state, args, 0, as_stream(stream));
  on_device.send(0, 1).hidden(on_device.args(), x.mutable_data_ptr());
  finish(op);
  return x;
}

Tensor last_logits(int64_t number, const Tensor& ids, const Tensors& rows, int64_t stream) {
  const char* op = "last_logits";
  Bound bound = find_model(op, number);
  PassArgs args = read_pass(op, *bound, ids, rows);
  require_rows(op, args.batch);
  Tensor logits = make(*bound, args.batch.num_seqs, bound->model.vocab);
  if (!args.batch.num_seqs) return logits;
  DeviceState& state = state_of(*bound);
  std::lock_guard lock(state.busy);
  DevicePass on_device(*bound, state, args, 0, as_stream(stream));
  on_device.send(0, 1).logits(on_device.args(), on_device.last_rows(), logits.mutable_data_ptr());
  finish(op);
  return logits;
}

// The tokens of draws and then the flags of rows of logits, as kernels write them and as the host reads them.
struct Drawn {
  Drawn(char* start, int64_t draws)
      : tokens(reinterpret_cast<int64_t*>(start)), finite(reinterpret_cast<bool*>(start + 8 * draws)) {}
  static size_t bytes(int64_t draws, int64_t rows) { return 8 * draws + rows; }
  int64_t* tokens;
  bool* finite;
};

std::tuple<Tensor, Tensor, Tensor> step(int64_t number, const Tensor& ids, const Tensors& rows, bool all_rows,
                                        const Optional& draw_rows, const Tensors& sampling, int64_t num_token_ids,
                                        int64_t stream) {
  const char* op = "step";
  Bound bound = find_model(op, number);
  PassArgs args = read_pass(op, *bound, ids, rows);
  if (!all_rows) require_rows(op, args.batch);
  int64_t count = all_rows ? args.batch.num_tokens : args.batch.num_seqs, vocab = bound->model.vocab;
  const int64_t* drawn_from = read_draw_rows(op, draw_rows, count);
  Draws draws = read_draws(op, drawn_from ? draw_rows->size(0) : count, vocab, sampling, num_token_ids);
  check_ids(op, num_token_ids, vocab);
  Tensor logits = make(*bound, count, vocab), tokens = like(ids, {draws.rows});
  Tensor finite = torch::stable::new_empty(ids, {count}, ScalarType::Bool);
  if (!args.batch.num_tokens) return {tokens, finite, logits};
  DeviceState& state = state_of(*bound);
  std::lock_guard lock(state.busy);
  if (std::optional<Shape> shape = drawn_from ? std::nullopt : state.buckets->find(args, draws)) {
    state.buckets->run(*bound, *shape, args, draws, as_stream(stream), static_cast<int64_t*>(tokens.mutable_data_ptr()),
                       static_cast<bool*>(finite.mutable_data_ptr()), logits.mutable_data_ptr());
    finish(op);
    return {tokens, finite, logits};
  }
  DevicePass on_device(*bound, state, args, bytes_of(draws) + aligned(draws.rows * 8), as_stream(stream));
  Draws there = on_device.put(draws);
  if (drawn_from) drawn_from = on_device.put(drawn_from, draws.rows);
  state.results.begin(*bound->cache, Drawn::bytes(draws.rows, count));
  Drawn drawn(state.results.on_device(), draws.rows);
  Pass pass = on_device.send(draws.rows, num_token_ids, drawn_from != nullptr);
  pass.logits(on_device.args(), all_rows ? nullptr : on_device.last_rows(), logits.mutable_data_ptr());
  pass.look(logits.const_data_ptr(), count, drawn.finite);
  if (drawn_from)
    pass.draw_from(there, logits.const_data_ptr(), count, drawn_from, drawn.tokens);
  else
    pass.draw(there, logits.const_data_ptr(), drawn.finite, drawn.tokens);
  Drawn here(const_cast<char*>(state.results.fetch(as_stream(stream))), draws.rows);
  state.staging.arrived();
  finish(op);
  memcpy(tokens.mutable_data_ptr(), here.tokens, 8 * draws.rows);
  memcpy(finite.mutable_data_ptr(), here.finite, count);
  return {tokens, finite, logits};
}

// The rows of the later levels: one per sequence. Positions, slots and lengths are known before the tokens are.
struct Level {
  std::vector<int64_t> positions, slots;
  std::vector<int32_t> lengths;

  Level(const AheadArgs& a, int64_t alive, int64_t level, int64_t block_size) {
    const Batch& first = a.first.batch;
    for (int64_t s = 0; s < alive; s++) {
      int64_t place = first.kv_len[s] + level - 1;
      int64_t block = first.block_table[s * first.table_stride + place / block_size];
      positions.push_back(first.positions[first.query_start[s + 1] - 1] + level);
      slots.push_back(block * block_size + place % block_size);
      lengths.push_back(static_cast<int32_t>(place + 1));
    }
  }
};

int64_t count_alive(const AheadArgs& a, int64_t level) {
  int64_t alive = 0;
  while (alive < a.first.batch.num_seqs && a.depths[alive] > level) alive++;
  return alive;
}

Tensor decode_ahead(int64_t number, const Tensor& ids, const Tensors& rows, const Tensor& depths, const Tensor& keys,
                    const Tensors& filters, int64_t num_token_ids, int64_t stream) {
  const char* op = "decode_ahead";
  Bound bound = find_model(op, number);
  AheadArgs args = read_ahead(op, *bound, ids, rows, depths, keys, filters, num_token_ids);
  const Batch& first = args.first.batch;
  const int64_t count = first.num_seqs, levels = args.count, vocab = bound->model.vocab;
  check_ids(op, num_token_ids, vocab);
  Tensor result = like(ids, {count, levels});
  int64_t* tokens = static_cast<int64_t*>(result.mutable_data_ptr());
  std::fill_n(tokens, count * levels, -1);
  if (!count || !levels) return result;

  DeviceState& state = state_of(*bound);
  std::lock_guard lock(state.busy);
  const size_t more = levels * (2 * aligned(count * 8) + aligned(count * 4)) + aligned(levels * count * 8) +
                      aligned(count * 32) + 2 * aligned(count * 8) + aligned((count + 1) * 4);
  DevicePass on_device(*bound, state, args.first, more, as_stream(stream));
  std::vector<int32_t> starts(count + 1);
  for (int64_t s = 0; s <= count; s++) starts[s] = static_cast<int32_t>(s);
  const std::vector<int64_t> nothing(count);
  const int64_t* all_keys = on_device.put(args.keys, levels * count);
  Draws draws = {count, num_token_ids, nullptr, on_device.put(args.numbers, 4 * count), on_device.put(args.top_k, count),
                 nullptr, on_device.put(nothing.data(), count), 0};
  const int32_t* one_each = on_device.put(starts.data(), count + 1);
  std::vector<Batch> batches;
  for (int64_t level = 1; level < levels; level++) {
    int64_t alive = count_alive(args, level);
    Level l(args, alive, level, bound->model.heads.block_size);
    batches.push_back({on_device.put(l.positions.data(), alive), on_device.put(l.slots.data(), alive),
                       on_device.args().batch.block_table, first.table_stride, one_each,
                       on_device.put(l.lengths.data(), alive), alive, alive});
  }
  Tensor logits = make(*bound, count, vocab);
  state.results.begin(*bound->cache, Drawn::bytes(count * levels, count));
  Drawn drawn(state.results.on_device(), count * levels);
  Pass pass = on_device.send(count, num_token_ids);
  for (int64_t level = 0; level < levels; level++) {
    draws.rows = count_alive(args, level);
    draws.keys = all_keys + level * count;
    if (level == 0)
      pass.logits(on_device.args(), on_device.last_rows(), logits.mutable_data_ptr());
    else
      pass.logits({batches[level - 1], drawn.tokens + (level - 1) * count}, nullptr, logits.mutable_data_ptr());
    pass.look(logits.const_data_ptr(), draws.rows, drawn.finite);
    pass.draw(draws, logits.const_data_ptr(), drawn.finite, drawn.tokens + level * count);
  }
  Drawn here(const_cast<char*>(state.results.fetch(as_stream(stream))), count * levels);
  state.staging.arrived();
  finish(op);
  for (int64_t level = 0; level < levels; level++)
    for (int64_t s = 0; s < count_alive(args, level); s++) tokens[s * levels + level] = here.tokens[level * count + s];
  return result;
}

}  // namespace

MINILLM_FRAGMENT(MINILLM_NAMESPACE, m) {
  m.def("bind_device(int model, int[] sizes, bool tensor_cores, int stream) -> ()");
  m.def("hidden(int model, Tensor ids, Tensor[] rows, int stream) -> Tensor");
  m.def("last_logits(int model, Tensor ids, Tensor[] rows, int stream) -> Tensor");
  m.def(
      "step(int model, Tensor ids, Tensor[] rows, bool all_rows, Tensor? draw_rows, Tensor[] sampling, "
      "int num_token_ids, int stream) -> (Tensor, Tensor, Tensor)");
  m.def(
      "decode_ahead(int model, Tensor ids, Tensor[] rows, Tensor depths, Tensor keys, Tensor[] filters, "
      "int num_token_ids, int stream) -> Tensor");
}

// The tensors are on the CPU, whatever the model is on.
MINILLM_IMPL(MINILLM_NAMESPACE, CPU, m) {
  m.impl("hidden", TORCH_BOX(&hidden));
  m.impl("last_logits", TORCH_BOX(&last_logits));
  m.impl("step", TORCH_BOX(&step));
  m.impl("decode_ahead", TORCH_BOX(&decode_ahead));
}

MINILLM_IMPL(MINILLM_NAMESPACE, CompositeExplicitAutograd, m) { m.impl("bind_device", TORCH_BOX(&bind_device)); }

}  // namespace cuda
}  // namespace minillm
