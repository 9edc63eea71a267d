// The torch ops of a layer: schemas, and the functions behind them.

#include <cstring>

#include "bind.h"

namespace minillm {

Matrix matrix_of(const char* op, const Tensor& packed, int64_t out, int64_t in, DType dtype) {
  if (packed.scalar_type() == ScalarType::Byte) return quantized_matrix(op, packed, out, in, dtype);
  Matrix matrix = {data<void>(packed), dtype_of(op, packed), nullptr, {}};
  STD_TORCH_CHECK(matrix.dtype == dtype || cpu::narrower(matrix.dtype, dtype, in), op,
                  ": x has another dtype than the packed weight");
  STD_TORCH_CHECK(packed.is_contiguous(), op, ": the packed weight is not contiguous");
  check_size(op, "the packed weight's size", packed.numel(), cpu::packed_blocks(out) * cpu::packed_block_size(in, matrix.dtype));
  return matrix;
}

}  // namespace minillm

namespace minillm::cpu {
namespace {

// ---- packed weights ---------------------------------------------------------------------------

Tensor pack(const Tensor& weight) {
  DType dtype = dtype_of("pack", weight);
  check("pack", "weight", weight, 2, weight.scalar_type());
  int64_t out = weight.size(0), in = weight.size(1), blocks = packed_blocks(out);
  std::vector<int64_t> shape = {blocks, in, 16};
  if (dtype == DType::bf16) shape = {blocks, (in + 1) / 2, 16, 2};
  Tensor packed = like(weight, shape);
  kernels().pack({data<void>(weight), packed.mutable_data_ptr(), out, in, dtype});
  return packed;
}

// The same in place, for sizes that need no padding.
void pack_in_place(const Tensor& weight) {
  DType dtype = dtype_of("pack_", weight);
  check("pack_", "weight", weight, 2, weight.scalar_type());
  int64_t out = weight.size(0), in = weight.size(1);
  check_size("pack_", "weight's size", weight.numel(), packed_blocks(out) * packed_block_size(in, dtype));
  kernels().pack({data<void>(weight), weight.mutable_data_ptr(), out, in, dtype});
}

Tensor embedding(const Tensor& ids, const Tensor& packed, int64_t vocab, int64_t in, ScalarType type) {
  check("embedding", "ids", ids, 1, ScalarType::Long);
  Tensor y = torch::stable::new_empty(packed, {ids.size(0), in}, type);
  DType dtype = dtype_of("embedding", y);
  Matrix matrix = matrix_of("embedding", packed, vocab, in, dtype);
  check_range("embedding", "id", data<int64_t>(ids), ids.size(0), vocab);
  kernels().embedding({data<int64_t>(ids), ids.size(0), matrix, in, y.mutable_data_ptr(), dtype});
  return y;
}

Tensor linear(const Tensor& x, const Tensor& packed, const Optional& bias, int64_t out) {
  DType dtype = dtype_of("linear", x);
  check("linear", "x", x, 2, x.scalar_type());
  int64_t rows = x.size(0), in = x.size(1);
  Matrix matrix = matrix_of("linear", packed, out, in, dtype);
  if (bias) {
    check("linear", "bias", *bias, 1, x.scalar_type());
    check_size("linear", "bias's length", bias->size(0), out);
    matrix.bias = data<void>(*bias);
  }
  Tensor y = like(x, {rows, out});
  kernels().linear({data<void>(x), in, matrix, y.mutable_data_ptr(), rows, out, in, dtype, nullptr});
  return y;
}

// ---- row by row -------------------------------------------------------------------------------

int64_t rows_of(const Tensor& t) { return t.size(t.dim() - 1) ? t.numel() / t.size(t.dim() - 1) : 0; }

void check_norm(const char* op, const Tensor& x, const Tensor& weight) {
  check(op, "x", x, x.dim(), x.scalar_type());
  check(op, "weight", weight, 1, x.scalar_type());
  check_size(op, "weight's length", weight.size(0), x.size(x.dim() - 1));
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double offset) {
  check_norm("rms_norm", x, weight);
  int64_t size = weight.size(0);
  Tensor y = torch::stable::empty_like(x);
  kernels().norm({data<void>(x), nullptr, {data<void>(weight), nullptr, size}, nullptr, y.mutable_data_ptr(),
                  rows_of(x), 1, size, size, static_cast<float>(eps), static_cast<float>(offset),
                  dtype_of("rms_norm", x)});
  return y;
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  check_norm("layer_norm", x, weight);
  check("layer_norm", "bias", bias, 1, x.scalar_type());
  int64_t size = weight.size(0);
  check_size("layer_norm", "bias's length", bias.size(0), size);
  Tensor y = torch::stable::empty_like(x);
  kernels().norm({data<void>(x), nullptr, {data<void>(weight), data<void>(bias), size}, nullptr, y.mutable_data_ptr(),
                  rows_of(x), 1, size, size, static_cast<float>(eps), 0, dtype_of("layer_norm", x)});
  return y;
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  check_norm("add_rms_norm", x, weight);
  check("add_rms_norm", "residual", residual, x.dim(), x.scalar_type());
  check_size("add_rms_norm", "residual's size", residual.numel(), x.numel());
  int64_t size = weight.size(0);
  Tensor y = torch::stable::empty_like(x), sum = torch::stable::empty_like(x);
  kernels().norm({data<void>(x), data<void>(residual), {data<void>(weight), nullptr, size}, sum.mutable_data_ptr(),
                  y.mutable_data_ptr(), rows_of(x), 1, size, size, static_cast<float>(eps), 0,
                  dtype_of("add_rms_norm", x)});
  return {y, sum};
}

Tensor act_and_mul(const Tensor& gate_up, std::string activation) {
  const char* op = "act_and_mul";
  check(op, "gate_up", gate_up, 2, gate_up.scalar_type());
  STD_TORCH_CHECK(gate_up.size(1) % 2 == 0, op, ": gate_up has ", gate_up.size(1), " columns, an odd number");
  Tensor y = like(gate_up, {gate_up.size(0), gate_up.size(1) / 2});
  kernels().gate({data<void>(gate_up), y.mutable_data_ptr(), y.size(0), y.size(1), activation_of(op, activation),
                  dtype_of(op, gate_up)});
  return y;
}

Tensor mapped(const char* op, const Tensor& x, Map map, float number, Activation activation) {
  check(op, "x", x, x.dim(), x.scalar_type());
  Tensor y = torch::stable::empty_like(x);
  kernels().map({data<void>(x), y.mutable_data_ptr(), rows_of(x), x.size(x.dim() - 1), map, number, activation,
                 dtype_of(op, x)});
  return y;
}

Tensor act(const Tensor& x, std::string activation) {
  Activation found = activation_of("act", activation);
  STD_TORCH_CHECK(found != Activation::swiglu_clamped, "act: swiglu_clamped needs a gate");
  return mapped("act", x, Map::activation, 0, found);
}

Tensor softcap(const Tensor& x, double cap) {
  return mapped("softcap", x, Map::softcap, static_cast<float>(cap), {});
}

// ---- attention --------------------------------------------------------------------------------

Tensor rope_and_cache(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                      const Tensor& k_cache, const Tensor& v_cache, const Tensor& positions,
                      const Tensor& slot_mapping) {
  const char* op = "rope_and_cache";
  check_caches(op, k_cache, v_cache);
  check_heads(op, "q", q, k_cache);
  check_heads(op, "k", k, k_cache);
  check_heads(op, "v", v, k_cache);
  int64_t tokens = q.size(0);
  for (const Tensor* t : {&k, &v}) {
    check_size(op, "k's or v's number of heads", t->size(1), k_cache.size(2));
    check_size(op, "k's or v's number of tokens", t->size(0), tokens);
    STD_TORCH_CHECK(t->scalar_type() == q.scalar_type(), op, ": k or v has another dtype than q");
  }
  RopeTables rope = read_rope(op, cos, sin, head_dim_of(k_cache));
  Batch batch = read_slots(op, positions, slot_mapping, tokens, cos.size(0), k_cache);
  Tensor out = like(q, {tokens, q.size(1), q.size(2)});
  kernels().rope_and_cache({data<void>(q), data<void>(k), data<void>(v), q.stride(0), k.stride(0), v.stride(0),
                            rope, cache_of(k_cache, v_cache), out.mutable_data_ptr(), q.size(1) * q.size(2), batch,
                            heads_of(k_cache, q.size(1), dtype_of(op, q))});
  return out;
}

Tensor attend(const char* op, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
              const Tensor& query_start, const Tensor& kv_len, double scale, int64_t window, double softcap,
              const Optional& sinks) {
  check_caches(op, k_cache, v_cache);
  check_heads(op, "q", q, k_cache);
  STD_TORCH_CHECK(q.size(1) % k_cache.size(2) == 0, op, ": ", q.size(1), " heads over ", k_cache.size(2), " kv heads");
  if (sinks) {
    check(op, "sinks", *sinks, 1, q.scalar_type());
    check_size(op, "sinks' length", sinks->size(0), q.size(1));
  }
  Batch batch = {};
  batch.num_tokens = q.size(0);
  read_sequences(op, batch, block_table, query_start, kv_len, k_cache);
  Tensor out = like(q, {q.size(0), q.size(1), q.size(2)});
  kernels().attention({data<void>(q), q.stride(0), data<void>(k_cache), data<void>(v_cache), out.mutable_data_ptr(),
                       batch, heads_of(k_cache, q.size(1), dtype_of(op, q)), static_cast<float>(scale), window,
                       static_cast<float>(softcap), sinks ? data<void>(*sinks) : nullptr});
  return out;
}

Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
                       const Tensor& query_start, const Tensor& kv_len, double scale, int64_t window) {
  return attend("paged_attention", q, k_cache, v_cache, block_table, query_start, kv_len, scale, window, 0, {});
}

Tensor variant_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
                         const Tensor& query_start, const Tensor& kv_len, double scale, int64_t window, double softcap,
                         const Optional& sinks) {
  return attend("variant_attention", q, k_cache, v_cache, block_table, query_start, kv_len, scale, window, softcap,
                sinks);
}

void copy_blocks(const std::vector<Tensor>& caches, const Tensor& source, const Tensor& destination) {
  const char* op = "copy_blocks";
  check(op, "source", source, 1, ScalarType::Long);
  check(op, "destination", destination, 1, ScalarType::Long);
  int64_t count = source.size(0);
  check_size(op, "destination's length", destination.size(0), count);
  const int64_t *from = data<int64_t>(source), *to = data<int64_t>(destination);
  for (const Tensor& cache : caches) {
    check(op, "cache", cache, cache.dim(), cache.scalar_type());
    check_range(op, "source block", from, count, cache.size(0));
    check_range(op, "destination block", to, count, cache.size(0));
    int64_t bytes = cache.size(0) ? cache.numel() / cache.size(0) * cache.element_size() : 0;
    char* base = static_cast<char*>(cache.mutable_data_ptr());
    for (int64_t i = 0; i < count; i++) memmove(base + to[i] * bytes, base + from[i] * bytes, bytes);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("pack(Tensor weight) -> Tensor");
  m.def("pack_(Tensor(a!) weight) -> ()");
  m.def("embedding(Tensor ids, Tensor packed, int vocab_size, int hidden_size, ScalarType dtype) -> Tensor");
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, float offset) -> Tensor");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("act_and_mul(Tensor gate_up, str activation) -> Tensor");
  m.def("act(Tensor x, str activation) -> Tensor");
  m.def("softcap(Tensor x, float cap) -> Tensor");
  m.def(
      "rope_and_cache(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor positions, Tensor slot_mapping) -> Tensor");
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor query_start, "
      "Tensor kv_len, float scale, int window) -> Tensor");
  m.def(
      "variant_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor query_start, "
      "Tensor kv_len, float scale, int window, float softcap, Tensor? sinks) -> Tensor");
  m.def("copy_blocks(Tensor(a!)[] caches, Tensor source, Tensor destination) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("pack_", TORCH_BOX(&pack_in_place));
  m.impl("embedding", TORCH_BOX(&embedding));
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("act_and_mul", TORCH_BOX(&act_and_mul));
  m.impl("act", TORCH_BOX(&act));
  m.impl("softcap", TORCH_BOX(&softcap));
  m.impl("rope_and_cache", TORCH_BOX(&rope_and_cache));
  m.impl("paged_attention", TORCH_BOX(&paged_attention));
  m.impl("variant_attention", TORCH_BOX(&variant_attention));
  m.impl("copy_blocks", TORCH_BOX(&copy_blocks));
}

}  // namespace minillm::cpu
