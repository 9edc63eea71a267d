// The ops above a layer: all layers in one call, and what turns logits into tokens.

#include <map>
#include <mutex>

#include "bind.h"

namespace minillm {
namespace {

// ---- layers -----------------------------------------------------------------------------------

// Pointers of layer `i`'s weights; a tensor without elements stands for a weight the model lacks.
LayerWeights layer_weights(const std::vector<Tensor>& weights, const Tensor& k_cache, const Tensor& v_cache,
                           int64_t window, int64_t i) {
  const Tensor* own = &weights[i * kTensorsPerLayer];
  auto vector = [&](int n) { return own[n].numel() ? data<void>(own[n]) : nullptr; };
  auto matrix = [&](int n) { return Matrix{data<void>(own[n]), dtype_of("bind_layers", own[n])}; };
  return {matrix(0), vector(1), vector(2), vector(3), matrix(4),  vector(5), vector(6),
          matrix(7), vector(8), matrix(9), vector(10), vector(11), k_cache.mutable_data_ptr(),
          v_cache.mutable_data_ptr(), window};
}

// Every weight has the size its place asks for, or none where the model may lack it.
void check_weights(const char* op, const std::vector<Tensor>& weights, int64_t layer, int64_t hidden,
                   int64_t intermediate, const Heads& heads) {
  int64_t q = heads.num_heads * heads.head_dim, kv = heads.num_kv_heads * heads.head_dim, dim = heads.head_dim;
  auto packed = [&](int64_t out, int64_t in) { return packed_blocks(out) * packed_block_size(in, heads.dtype); };
  const int64_t inputs[kTensorsPerLayer] = {hidden, 0, 0, 0, q, 0, 0, hidden, 0, intermediate, 0, 0};  // of matrices
  const int64_t sizes[kTensorsPerLayer] = {packed(q + 2 * kv, hidden), q + 2 * kv, dim, dim, packed(hidden, q), hidden,
                                           hidden, packed(2 * intermediate, hidden), 2 * intermediate,
                                           packed(hidden, intermediate), hidden, hidden};
  const bool may_lack[kTensorsPerLayer] = {false, true, true, true, false, true, false, false, true, false, true, false};
  for (int64_t n = 0; n < kTensorsPerLayer; n++) {
    const Tensor& t = weights[layer * kTensorsPerLayer + n];
    STD_TORCH_CHECK((t.numel() == sizes[n] || (may_lack[n] && !t.numel())) && t.is_contiguous(), op, ": weight ", n,
                    " of layer ", layer, " has ", t.numel(), " elements, not ", sizes[n]);
    STD_TORCH_CHECK(!t.numel() || dtype_of(op, t) == heads.dtype ||
                        (inputs[n] && narrower(dtype_of(op, t), heads.dtype, inputs[n])),
                    op, ": weight ", n, " of layer ", layer, " has another dtype than x");
  }
}

std::mutex bound_mutex;
std::map<int64_t, std::shared_ptr<const BoundLayers>> bound_layers;
int64_t last_bound = 0;

int64_t bind_layers(const std::vector<Tensor>& weights, const std::vector<Tensor>& k_caches,
                    const std::vector<Tensor>& v_caches, const std::vector<int64_t>& windows, int64_t num_heads,
                    int64_t hidden, int64_t intermediate) {
  const char* op = "bind_layers";
  int64_t count = windows.size();
  check_size(op, "the number of weights", weights.size(), count * kTensorsPerLayer);
  check_size(op, "the number of k caches", k_caches.size(), count);
  check_size(op, "the number of v caches", v_caches.size(), count);
  STD_TORCH_CHECK(count > 0, op, ": there are none");
  const Tensor& cache = k_caches[0];
  DType dtype = dtype_of(op, cache);
  BoundLayers bound = {weights, {}, cache, num_heads, hidden, intermediate, dtype};
  for (int64_t i = 0; i < count; i++) {
    check_caches(op, k_caches[i], v_caches[i]);
    STD_TORCH_CHECK(k_caches[i].scalar_type() == cache.scalar_type(), op, ": the caches differ in dtype");
    for (int d = 0; d < 4; d++) check_size(op, "a cache's shape", k_caches[i].size(d), cache.size(d));
    check_weights(op, weights, i, hidden, intermediate, heads_of(cache, num_heads, dtype));
    bound.layers.push_back(layer_weights(weights, k_caches[i], v_caches[i], windows[i], i));
    bound.kept.push_back(k_caches[i]);
    bound.kept.push_back(v_caches[i]);
  }
  STD_TORCH_CHECK(num_heads % cache.size(2) == 0, op, ": ", num_heads, " heads over ", cache.size(2), " kv heads");
  std::lock_guard lock(bound_mutex);
  bound_layers[++last_bound] = std::make_shared<const BoundLayers>(std::move(bound));
  return last_bound;
}

void unbind_layers(int64_t number) {
  std::lock_guard lock(bound_mutex);
  bound_layers.erase(number);
}

}  // namespace

std::shared_ptr<const BoundLayers> find_layers(const char* op, int64_t number) {
  std::lock_guard lock(bound_mutex);
  auto found = bound_layers.find(number);
  STD_TORCH_CHECK(found != bound_layers.end(), op, ": no layers are bound as ", number);
  return found->second;
}

LayersArgs layers_of(const BoundLayers& bound, const Batch& batch, const Tensor& cos, const Tensor& sin, double eps,
                     double scale) {
  LayersArgs args = {};
  args.heads = heads_of(bound.cache, bound.num_heads, bound.dtype);
  args.batch = batch;
  args.layers = bound.layers.data();
  args.num_layers = bound.layers.size();
  args.hidden = bound.hidden;
  args.intermediate = bound.intermediate;
  args.cos = data<float>(cos);
  args.sin = data<float>(sin);
  args.eps = static_cast<float>(eps);
  args.scale = static_cast<float>(scale);
  return args;
}

namespace {

Tensor layers(const Tensor& residual, const Tensor& x, int64_t number, const Tensor& cos, const Tensor& sin,
              const Tensor& positions, const Tensor& slot_mapping, const Tensor& block_table,
              const Tensor& query_start, const Tensor& kv_len, double eps, double scale) {
  const char* op = "layers";
  std::shared_ptr<const BoundLayers> bound = find_layers(op, number);
  const Tensor& cache = bound->cache;
  check(op, "x", x, 2, cache.scalar_type());
  check(op, "residual", residual, 2, cache.scalar_type());
  check_size(op, "x's width", x.size(1), bound->hidden);
  check_size(op, "residual's size", residual.numel(), x.numel());
  int64_t tokens = x.size(0);
  Batch batch = read_slots(op, positions, slot_mapping, tokens, cos, sin, cache);
  read_sequences(op, batch, block_table, query_start, kv_len, tokens, cache);
  Tensor sum = torch::stable::clone(residual), y = torch::stable::clone(x);
  LayersArgs args = layers_of(*bound, batch, cos, sin, eps, scale);
  args.residual = sum.mutable_data_ptr();
  args.x = y.mutable_data_ptr();
  run_layers(kernels(), args);
  return y;
}

}  // namespace

// ---- sampling ---------------------------------------------------------------------------------

SampleArgs read_sampling(const char* op, int64_t rows, int64_t vocab, DType dtype, const Tensor& keys,
                         const Tensor& numbers, const Tensor& top_k, const Tensor& seen, const Tensor& seen_end,
                         int64_t num_token_ids) {
  check(op, "keys", keys, 1, ScalarType::Long);
  check(op, "numbers", numbers, 2, ScalarType::Double);
  check(op, "top_k", top_k, 1, ScalarType::Long);
  check(op, "seen", seen, 1, ScalarType::Long);
  check(op, "seen_end", seen_end, 1, ScalarType::Long);
  int64_t end = 0;
  check_size(op, "the number of keys", keys.size(0), rows);
  check_size(op, "numbers' length", numbers.numel(), 4 * rows);
  check_size(op, "top_k's length", top_k.size(0), rows);
  check_size(op, "seen_end's length", seen_end.size(0), rows);
  STD_TORCH_CHECK(num_token_ids > 0 && vocab > 0, op, ": there are no token ids");
  for (int64_t r = 0; r < rows; r++) {
    STD_TORCH_CHECK(data<int64_t>(seen_end)[r] >= end, op, ": seen_end falls at row ", r);
    end = data<int64_t>(seen_end)[r];
  }
  STD_TORCH_CHECK(end <= seen.size(0), op, ": seen_end is ", end, ", seen has ", seen.size(0));
  check_range(op, "seen id", data<int64_t>(seen), end, INT64_MAX);
  return {nullptr, dtype, rows, vocab, num_token_ids, data<int64_t>(keys), data<double>(numbers), data<int64_t>(top_k),
          data<int64_t>(seen), data<int64_t>(seen_end), nullptr, nullptr};
}

namespace {

Tensor draw(const Tensor& logits, const Tensor& keys, const Tensor& numbers, const Tensor& top_k, const Tensor& seen,
            const Tensor& seen_end, int64_t num_token_ids) {
  const char* op = "sample";
  check(op, "logits", logits, 2, logits.scalar_type());
  SampleArgs args = read_sampling(op, logits.size(0), logits.size(1), dtype_of(op, logits), keys, numbers, top_k, seen,
                                  seen_end, num_token_ids);
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
      "bind_layers(Tensor[] weights, Tensor[] k_caches, Tensor[] v_caches, int[] windows, int num_heads, int hidden, "
      "int intermediate_size) -> int");
  m.def("unbind_layers(int number) -> ()");
  m.def(
      "layers(Tensor residual, Tensor x, int number, Tensor cos, Tensor sin, Tensor positions, Tensor slot_mapping, "
      "Tensor block_table, Tensor query_start, Tensor kv_len, float eps, float scale) -> Tensor");
  m.def(
      "sample(Tensor logits, Tensor keys, Tensor numbers, Tensor top_k, Tensor seen, Tensor seen_end, "
      "int num_token_ids) -> Tensor");
  m.def("finite_rows(Tensor logits) -> Tensor");
  m.def("token_logprobs(Tensor logits, Tensor tokens, int top) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("bind_layers", TORCH_BOX(&bind_layers));
  m.impl("layers", TORCH_BOX(&layers));
  m.impl("sample", TORCH_BOX(&draw));
  m.impl("finite_rows", TORCH_BOX(&finite));
  m.impl("token_logprobs", TORCH_BOX(&logprobs));
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CompositeExplicitAutograd, m) { m.impl("unbind_layers", TORCH_BOX(&unbind_layers)); }

}  // namespace minillm
