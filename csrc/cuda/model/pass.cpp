// The loop over the layers: kernels of csrc/cuda in the order of minillm/model/decoder.py (pass.h).

#include "pass.h"

#include <algorithm>

#include "device.h"
#include "touches.h"

namespace minillm::cuda {
namespace {

// The functions of the cuda kernels have one name more: softcap is one of them.
Function function_of(Activation activation) { return static_cast<Function>(activation); }
static_assert(static_cast<int>(Function::swiglu_clamped) == static_cast<int>(Activation::swiglu_clamped));

// The largest sizes of all layers; count 0: none has experts.
Experts most_experts(const Model& m) {
  Experts most = {};
  for (int64_t i = 0; i < m.num_layers; i++) {
    const Experts& e = m.layers[i].experts;
    most = {std::max(most.count, e.count), std::max(most.per_token, e.per_token), std::max(most.size, e.size), false};
  }
  return most;
}

// The most memory that attention needs, for the batch as it is or for one row of each sequence, as drafting has it.
int64_t most_attention_bytes(const Model& m, const Sizes& sizes) {
  AttentionArgs p = {};
  p.num_heads = static_cast<int>(m.heads.num_heads), p.head_dim = static_cast<int>(m.heads.head_dim);
  p.block_size = static_cast<int>(m.heads.block_size), p.dtype = m.heads.dtype, p.codes = m.heads.kv;
  p.sequences.num_seqs = static_cast<int>(sizes.seqs), p.sequences.max_blocks = static_cast<int>(sizes.table_width);
  int64_t most = 0;
  for (int64_t rows : {sizes.rows, sizes.seqs}) {
    p.sequences.num_tokens = static_cast<int>(rows);
    most = std::max(most, attention_bytes(p, sizes.tensor_cores));
  }
  return most;
}

}  // namespace

Scratch Scratch::cut(char* base, const Model& m, const Sizes& sizes, size_t& end) {
  const int64_t width = width_of(m.heads.dtype), q = m.heads.num_heads * m.heads.head_dim;
  const int64_t qkv = q + 2 * m.heads.num_kv_heads * m.heads.head_dim;
  end = 0;
  auto piece = [&](int64_t bytes) {
    char* at = base ? base + end : nullptr;
    end += aligned(bytes);
    return at;
  };
  auto rows = [&](int64_t columns) { return piece(sizes.rows * columns * width); };
  Scratch s = {};
  s.residual = rows(m.hidden);
  s.x = rows(m.hidden);
  s.qkv = rows(qkv);
  s.q = rows(q);
  s.attended = rows(q);
  s.parts = piece(most_attention_bytes(m, sizes));
  s.added = rows(m.hidden);
  s.gate_up = rows((m.gated ? 2 : 1) * m.intermediate);
  s.gated = rows(m.intermediate);
  if (const Experts most = most_experts(m); most.count) {
    s.router = rows(most.count);
    s.chosen = piece(sizes.rows * most.per_token * 8);
    s.shares = piece(sizes.rows * most.per_token * 4);
    s.mixture = MixtureScratch::cut(base, most, m.hidden, width, sizes.rows, end);
  }
  s.sampling = piece(sample_scratch_bytes(static_cast<int>(sizes.draws), static_cast<int>(sizes.num_token_ids)));
  s.drawn_from = piece(sizes.gathers ? sizes.draws * m.vocab * width : 0);
  s.drawn_finite = piece(sizes.gathers ? sizes.draws : 0);
  return s;
}

Pass::Pass(const BoundModel& bound, const Scratch& scratch, bool tensor_cores, Stream stream)
    : bound_(bound),
      m_(bound.model),
      s_(scratch),
      tensor_cores_(tensor_cores),
      stream_(stream),
      dtype_(m_.heads.dtype),
      width_(width_of(dtype_)),
      dim_(m_.heads.head_dim),
      q_size_(m_.heads.num_heads * dim_),
      kv_size_(m_.heads.num_kv_heads * dim_),
      qkv_size_(q_size_ + 2 * kv_size_),
      up_size_((m_.gated ? 2 : 1) * m_.intermediate),
      cache_bytes_(bound.cache->numel() * bound.cache->element_size()) {}

void Pass::hidden(const PassArgs& args, void* x) const {
  const Batch& batch = args.batch;
  const int rows = static_cast<int>(batch.num_tokens), hidden = static_cast<int>(m_.hidden);
  touches({{"ids", args.ids, rows * 8}, {"embedding", m_.embedding.weight, matrix_bytes(m_.embedding, m_.vocab, m_.hidden, width_)},
           {"order", m_.embedding.form.order, m_.hidden * 4},
           {"position_table", m_.positions, bound_.max_positions * m_.hidden * width_},
           {"positions", batch.positions, rows * 8}, {"residual", s_.residual, rows * m_.hidden * width_}});
  look_up({m_.embedding.weight, args.ids, m_.positions, batch.positions, s_.residual, rows, hidden, m_.embedding_scale,
           dtype_, m_.embedding.form, m_.vocab},
          stream_);
  const Norm& first = m_.layers[0].weights.input_norm;
  if (first.weight) norm(s_.residual, nullptr, first, s_.x, nullptr, rows);
  const void* input = first.weight ? s_.x : s_.residual;
  for (int64_t i = 0; i < m_.num_layers; i++) {
    const LayerWeights& w = m_.layers[i].weights;
    const bool last = i + 1 == m_.num_layers;
    attend(m_.layers[i], input, batch);
    input = add(w.attention_output_norm, w.mlp_norm, rows, s_.x);
    if (m_.layers[i].experts.count)
      mix_experts(m_.layers[i], input, rows);
    else
      feed_forward(w, input, rows);
    input = add(w.mlp_output_norm, last ? m_.final_norm : m_.layers[i + 1].weights.input_norm, rows, last ? x : s_.x);
  }
}

void Pass::logits(const PassArgs& args, const int64_t* last_rows, void* logits) const {
  const int rows = static_cast<int>(args.batch.num_tokens);
  const int count = last_rows ? static_cast<int>(args.batch.num_seqs) : rows;
  hidden(args, s_.x);
  const void* x = s_.x;
  if (last_rows) {
    touches({{"x", s_.x, rows * m_.hidden * width_}, {"last_rows", last_rows, count * 8},
             {"last_x", s_.added, count * m_.hidden * width_}});
    gather({s_.x, last_rows, nullptr, nullptr, s_.added, count, static_cast<int>(m_.hidden), 1, dtype_}, stream_);
    x = s_.added;
  }
  linear(x, m_.head, logits, count, m_.vocab, m_.hidden);
  if (m_.logits_divisor != 1) map(Map::divide, logits, nullptr, count, m_.vocab, m_.logits_divisor);
  if (m_.logits_softcap == 0) return;
  touches({{"logits", logits, count * m_.vocab * width_}});
  act({logits, logits, count, static_cast<int>(m_.vocab), Function::softcap, m_.logits_softcap, dtype_}, stream_);
}

void Pass::look(const void* logits, int64_t rows, bool* finite) const {
  touches({{"logits", logits, rows * m_.vocab * width_}, {"finite", finite, rows}});
  finite_rows({logits, finite, static_cast<int>(rows), static_cast<int>(m_.vocab), dtype_}, stream_);
}

void Pass::draw(const Draws& d, const void* logits, const bool* finite, int64_t* tokens) const {
  const int rows = static_cast<int>(d.rows), vocab = static_cast<int>(m_.vocab), ids = static_cast<int>(d.num_token_ids);
  touches({{"logits", logits, rows * m_.vocab * width_}, {"keys", d.keys, rows * 8}, {"numbers", d.numbers, rows * 32},
           {"top_k", d.top_k, rows * 8}, {"seen", d.seen, d.num_seen * 8}, {"seen_end", d.seen_end, rows * 8},
           {"scratch", s_.sampling, sample_scratch_bytes(rows, ids)}, {"finite", finite, rows}, {"tokens", tokens, rows * 8}});
  sample({logits, reinterpret_cast<const uint64_t*>(d.keys), d.numbers, d.top_k, d.seen, d.seen_end, s_.sampling, tokens,
          rows, vocab, ids, 0, dtype_, finite},
         stream_);
}

void Pass::draw_from(const Draws& d, const void* logits, int64_t count, const int64_t* rows, int64_t* tokens) const {
  touches({{"logits", logits, count * m_.vocab * width_}, {"draw_rows", rows, d.rows * 8},
           {"drawn_from", s_.drawn_from, d.rows * m_.vocab * width_}});
  gather({logits, rows, nullptr, nullptr, s_.drawn_from, static_cast<int>(d.rows), static_cast<int>(m_.vocab), 1, dtype_},
         stream_);
  bool* finite = reinterpret_cast<bool*>(s_.drawn_finite);
  look(s_.drawn_from, d.rows, finite);
  draw(d, s_.drawn_from, finite, tokens);
}

void Pass::attend(const Layer& layer, const void* x, const Batch& batch) const {
  const LayerWeights& w = layer.weights;
  const int rows = static_cast<int>(batch.num_tokens), seqs = static_cast<int>(batch.num_seqs), width = batch.table_stride;
  char *q = s_.qkv, *k = q + q_size_ * width_, *v = k + kv_size_ * width_;
  linear(x, w.qkv, s_.qkv, rows, qkv_size_, m_.hidden);
  head_norm(q, w.q_norm, m_.heads.num_heads, rows);
  head_norm(k, w.k_norm, m_.heads.num_kv_heads, rows);

  const int heads = m_.heads.num_heads, kv_heads = m_.heads.num_kv_heads, dim = dim_;
  const int64_t table = bound_.max_positions * layer.rope.half * 4, q_bytes = rows * q_size_ * width_;
  touches({{"qkv", s_.qkv, rows * qkv_size_ * width_}, {"cos", layer.rope.cos, table}, {"sin", layer.rope.sin, table},
           {"k_cache", layer.cache.k, cache_bytes_}, {"v_cache", layer.cache.v, cache_bytes_},
           {"positions", batch.positions, rows * 8}, {"slot_mapping", batch.slot_mapping, rows * 8},
           {"q_out", s_.q, q_bytes}});
  const int block_size = static_cast<int>(m_.heads.block_size);
  rotate_and_write({q, k, v, qkv_size_, qkv_size_, qkv_size_, layer.rope.cos, layer.rope.sin, batch.positions,
                    batch.slot_mapping, s_.q, layer.cache.k, layer.cache.v, rows, heads, kv_heads, dim,
                    static_cast<int>(2 * layer.rope.half), dtype_, m_.heads.kv, block_size},
                   stream_);

  const AttentionArgs args = {s_.q, q_size_, layer.cache.k, layer.cache.v, s_.attended,
                              {batch.block_table, batch.query_start, batch.kv_len, seqs, width, rows},
                              heads, kv_heads, dim, block_size, layer.scale, static_cast<int>(layer.window), dtype_,
                              layer.softcap, w.sinks, m_.heads.kv};
  touches({{"q", s_.q, q_bytes}, {"k_cache", layer.cache.k, cache_bytes_}, {"v_cache", layer.cache.v, cache_bytes_},
           {"parts", s_.parts, attention_bytes(args, tensor_cores_)},
           {"block_table", batch.block_table, int64_t{seqs} * width * 4}, {"query_start", batch.query_start, (seqs + 1) * 4},
           {"kv_len", batch.kv_len, seqs * 4}, {"sinks", w.sinks, heads * width_}, {"out", s_.attended, q_bytes}});
  attention(args, s_.parts, tensor_cores_, stream_);
  linear(s_.attended, w.o, s_.added, rows, m_.hidden, q_size_);
}

void Pass::feed_forward(const LayerWeights& w, const void* x, int rows) const {
  linear(x, w.gate_up, s_.gate_up, rows, up_size_, m_.hidden);
  touches({{"gate_up", s_.gate_up, rows * up_size_ * width_}, {"y", s_.gated, rows * m_.intermediate * width_}});
  (m_.gated ? act_and_mul : act)({s_.gate_up, s_.gated, rows, static_cast<int>(m_.intermediate),
                                  function_of(m_.activation), 0.0f, dtype_},
                                 stream_);
  linear(s_.gated, w.down, s_.added, rows, m_.hidden, m_.intermediate);
}

void Pass::mix_experts(const Layer& layer, const void* x, int rows) const {
  const LayerWeights& w = layer.weights;
  const Experts& e = layer.experts;
  int64_t* chosen = reinterpret_cast<int64_t*>(s_.chosen);
  float* shares = reinterpret_cast<float*>(s_.shares);
  linear(x, w.router, s_.router, rows, e.count, m_.hidden);
  touches({{"logits", s_.router, rows * e.count * width_}, {"chosen", chosen, rows * e.per_token * 8},
           {"weights", shares, rows * e.per_token * 4}});
  route({s_.router, chosen, shares, rows, static_cast<int>(e.count), static_cast<int>(e.per_token), e.renormalize, dtype_},
        stream_);
  mix({e, w.expert_gate_up, w.expert_down, function_of(m_.activation), m_.hidden, dtype_, tensor_cores_}, {x, chosen, shares, rows},
      s_.mixture, s_.added, stream_);
}

const void* Pass::add(const Norm& after, const Norm& before, int rows, void* x) const {
  if (after.weight) norm(s_.added, nullptr, after, s_.added, nullptr, rows);
  if (m_.residual_scale != 1) map(Map::multiply, s_.added, nullptr, rows, m_.hidden, m_.residual_scale);
  if (before.weight && !before.bias) {
    norm(s_.added, s_.residual, before, x, s_.residual, rows);
    return x;
  }
  map(Map::add, s_.residual, s_.added, rows, m_.hidden, 0);
  if (!before.weight) return s_.residual;
  norm(s_.residual, nullptr, before, x, nullptr, rows);
  return x;
}

void Pass::linear(const void* x, const Matrix& w, void* y, int rows, int64_t out, int64_t in) const {
  touches({{"x", x, rows * in * width_}, {"weight", w.weight, matrix_bytes(w, out, in, width_)},
           {"order", w.form.order, in * 4}, {"bias", w.bias, out * width_}, {"y", y, rows * out * width_}});
  cuda::linear({x, w.weight, w.bias, y, rows, static_cast<int>(in), static_cast<int>(out), dtype_, false, w.form},
               tensor_cores_, stream_);
}

void Pass::norm(const void* x, const void* residual, const Norm& norm, void* y, void* sum, int rows) const {
  const int64_t bytes = rows * norm.size * width_;
  touches({{"x", x, bytes}, {"residual", residual, bytes}, {"weight", norm.weight, norm.size * width_},
           {"bias", norm.bias, norm.size * width_}, {"y", y, bytes}});
  (norm.bias ? layer_norm : rms_norm)({x, residual, norm.weight, y, sum, rows, static_cast<int>(norm.size), m_.eps, dtype_,
                                       m_.norm_offset, norm.bias},
                                      stream_);
}

// The norm over q or k, in place: over each head apart, or over all as one.
void Pass::head_norm(char* x, const Norm& norm, int64_t heads, int rows) const {
  if (!norm.weight) return;
  touches({{"qkv", s_.qkv, rows * qkv_size_ * width_}, {"weight", norm.weight, norm.size * width_},
           {"bias", norm.bias, norm.size * width_}});
  (norm.bias ? layer_norm : rms_norm)({x, nullptr, norm.weight, x, nullptr, rows, static_cast<int>(norm.size), m_.eps, dtype_,
                                       m_.norm_offset, norm.bias, static_cast<int>(heads * dim_ / norm.size), qkv_size_},
                                      stream_);
}

// Changes x in place.
void Pass::map(Map kind, void* x, const void* other, int64_t rows, int64_t size, float number) const {
  const int64_t bytes = rows * size * width_;
  touches({{"x", x, bytes}, {"other", other, bytes}});
  cuda::map(kind, {x, other, x, rows * size, number, dtype_}, stream_);
}

}  // namespace minillm::cuda
