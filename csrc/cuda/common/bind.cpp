// The torch ops of the CUDA kernels: schemas, and the functions behind them, for a GPU and for the simulator
// (bind.h).
//
// `stream` is torch.cuda.current_stream().cuda_stream as an integer; the simulator ignores it.

#include "bind.h"
#include "bind_codes.h"
#include "bind_experts.h"
#include "bind_rows.h"
#include "bind_sampling.h"
#include "bind_verify.h"
#include "rungs.h"

namespace minillm::cuda {
namespace {

// ---- matrices -------------------------------------------------------------------------------------

// `rung` is one of the ladder, or the engine's choice (rungs.h): "plain" or "tensor".
void multiply_by(const char* op, const std::string& rung, const LinearArgs& p, Stream stream) {
  if (rung == "plain" || rung == "tensor") return linear(p, rung == "tensor", stream);
  const std::pair<const char*, void (*)(const LinearArgs&, Stream)> rungs[] = {
      {"l1", linear_l1}, {"l2", linear_l2}, {"l3", linear_l3}, {"l4", linear_l4}, {"l5", linear_l5}};
  for (const auto& [name, launch] : rungs)
    if (rung == name) return launch(p, stream);
  STD_TORCH_CHECK(false, op, ": there is no rung ", rung);
}

// What the rungs on tensor cores ask of their input.
void check_tensor_cores(const char* op, const LinearArgs& p) {
  STD_TORCH_CHECK(can_use_tensor_cores(p), op, ": ", p.in, " columns; tensor cores take bfloat16 and float16, a multiple of 8 columns below 2^24");
  for (const void* start : {p.x, p.weight})
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(start) % 16 == 0, op, ": x or weight begins at no multiple of 16 bytes");
}

Tensor multiply(const Tensor& x, const Tensor& weight, const Optional& bias, const std::string& rung, bool float_out,
                int64_t stream) {
  const char* op = "linear";
  check(op, "x", x, 2, x.scalar_type());
  check(op, "weight", weight, 2, x.scalar_type());
  check_size(op, "weight's number of columns", weight.size(1), x.size(1));
  STD_TORCH_CHECK(rung == "l5" || !float_out, op, ": rung ", rung, " has no float32 result");
  std::vector<int64_t> shape = {x.size(0), weight.size(0)};
  Tensor y = float_out ? torch::stable::new_empty(x, shape, ScalarType::Float) : like(x, shape);
  Call call(op);
  call.with("x", x).with("weight", weight).with("y", y);
  if (bias) {
    check(op, "bias", *bias, 1, x.scalar_type());
    check_size(op, "bias's length", bias->size(0), weight.size(0));
    call.with("bias", *bias);
  }
  const LinearArgs args = {data<void>(x), data<void>(weight), bias ? data<void>(*bias) : nullptr, y.mutable_data_ptr(),
                           static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), static_cast<int>(weight.size(0)),
                           dtype_of(op, x), float_out};
  if (rung == "l4" || rung == "l5" || (rung == "tensor" && can_use_tensor_cores(args))) check_tensor_cores(op, args);
  multiply_by(op, rung, args, as_stream(stream));
  call.done();
  return y;
}

// ---- the cache --------------------------------------------------------------------------------

Tensor rotate_and_cache(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                        const Tensor& k_cache, const Tensor& v_cache, const Tensor& positions,
                        const Tensor& slot_mapping, int64_t stream) {
  const char* op = "rope_and_cache";
  check_caches(op, k_cache, v_cache);
  check_heads(op, "q", q, k_cache);
  check_heads(op, "k", k, k_cache);
  check_heads(op, "v", v, k_cache);
  int64_t tokens = q.size(0);
  for (const Tensor* t : {&k, &v}) {
    check_size(op, "k's or v's number of heads", t->size(1), k_cache.size(2));
    check_size(op, "k's or v's number of tokens", t->size(0), tokens);
  }
  for (const Tensor* t : {&cos, &sin}) {
    check(op, "cos or sin", *t, 2, ScalarType::Float);
    check_size(op, "cos's or sin's width", t->size(1), cos.size(1));
    check_size(op, "cos's or sin's length", t->size(0), cos.size(0));
  }
  STD_TORCH_CHECK(2 * cos.size(1) <= q.size(2), op, ": ", 2 * cos.size(1), " rotated components of ", q.size(2));
  for (const Tensor* t : {&positions, &slot_mapping}) {
    check(op, "positions or slot_mapping", *t, 1, ScalarType::Long);
    check_size(op, "positions' or slot_mapping's length", t->size(0), tokens);
  }
  for (const Tensor* t : {&k_cache, &v_cache})
    STD_TORCH_CHECK(!has_codes(*t) || reinterpret_cast<uintptr_t>(t->const_data_ptr()) % 4 == 0, op, ": a cache begins at no multiple of 4 bytes");
  Tensor out = like(q, {tokens, q.size(1), q.size(2)});
  Call call(op);
  call.with("q", q).with("k", k).with("v", v).with("cos", cos).with("sin", sin).with("k_cache", k_cache);
  call.with("v_cache", v_cache).with("positions", positions).with("slot_mapping", slot_mapping).with("q_out", out);
  rotate_and_write({data<void>(q), data<void>(k), data<void>(v), q.stride(0), k.stride(0), v.stride(0), data<float>(cos),
                    data<float>(sin), data<int64_t>(positions), data<int64_t>(slot_mapping), out.mutable_data_ptr(),
                    k_cache.mutable_data_ptr(), v_cache.mutable_data_ptr(), static_cast<int>(tokens),
                    static_cast<int>(q.size(1)), static_cast<int>(k.size(1)), static_cast<int>(q.size(2)),
                    static_cast<int>(2 * cos.size(1)), dtype_of(op, q), kv_codes_of(k_cache),
                    static_cast<int>(k_cache.size(1))},
                   as_stream(stream));
  call.done();
  return out;
}

void copy(const std::vector<Tensor>& caches, const Tensor& source, const Tensor& destination, int64_t stream) {
  const char* op = "copy_blocks";
  check(op, "source", source, 1, ScalarType::Long);
  check(op, "destination", destination, 1, ScalarType::Long);
  check_size(op, "destination's length", destination.size(0), source.size(0));
  for (const Tensor& cache : caches) {
    check(op, "cache", cache, cache.dim(), cache.scalar_type());
    if (!cache.numel()) continue;
    Call call(op);
    call.with("cache", cache).with("source", source).with("destination", destination);
    copy_blocks({cache.mutable_data_ptr(), data<int64_t>(source), data<int64_t>(destination),
                 cache.numel() / cache.size(0) * static_cast<int64_t>(cache.element_size()),
                 static_cast<int>(source.size(0))},
                as_stream(stream));
    call.done();
  }
}

// ---- attention --------------------------------------------------------------------------------

AttentionArgs attention_args(const char* op, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                             const Tensor& block_table, const Tensor& query_start, const Tensor& kv_len, Tensor& out,
                             double scale, int64_t window) {
  check_caches(op, k_cache, v_cache);
  check_heads(op, "q", q, k_cache);
  STD_TORCH_CHECK(q.size(1) % k_cache.size(2) == 0, op, ": ", q.size(1), " heads over ", k_cache.size(2), " kv heads");
  STD_TORCH_CHECK(supports_head_dim(q.size(2)), op, ": head_dim ", q.size(2), " is not 32, 64, 96, 128 or 256");
  for (const Tensor* t : {&q, &k_cache, &v_cache})  // a head has 32 numbers or more, so each head is aligned too
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(t->const_data_ptr()) % 16 == 0, op, ": q or a cache begins at no multiple of 16 bytes");
  STD_TORCH_CHECK(q.stride(0) * q.element_size() % 16 == 0, op, ": rows of q begin at no multiple of 16 bytes");
  check(op, "block_table", block_table, 2, ScalarType::Int);
  check(op, "query_start", query_start, 1, ScalarType::Int);
  check(op, "kv_len", kv_len, 1, ScalarType::Int);
  check_size(op, "query_start's length", query_start.size(0), kv_len.size(0) + 1);
  check_size(op, "block_table's number of rows", block_table.size(0), kv_len.size(0));
  return {data<void>(q), q.stride(0), data<void>(k_cache), data<void>(v_cache), out.mutable_data_ptr(),
          {data<int32_t>(block_table), data<int32_t>(query_start), data<int32_t>(kv_len),
           static_cast<int>(kv_len.size(0)), static_cast<int>(block_table.size(1)), static_cast<int>(q.size(0))},
          static_cast<int>(q.size(1)), static_cast<int>(k_cache.size(2)), static_cast<int>(q.size(2)),
          static_cast<int>(k_cache.size(1)), static_cast<float>(scale), static_cast<int>(window), dtype_of(op, q),
          0, nullptr, kv_codes_of(k_cache)};
}

// Memory that only the running kernels need; nothing for 0 bytes.
struct Memory {
  std::optional<Tensor> kept;

  Memory(Call& call, const Tensor& beside, int64_t bytes) {
    if (!bytes) return;
    kept = torch::stable::new_empty(beside, {bytes / 4}, ScalarType::Float);
    call.with("parts", *kept);
  }
  void* start() const { return kept ? kept->mutable_data_ptr() : nullptr; }
};

// The engine's choice of a rung, "plain" or "tensor" (rungs.h).
bool attend_as_engine(Call& call, const std::string& rung, const AttentionArgs& args, const Tensor& q, Stream stream) {
  if (rung != "plain" && rung != "tensor") {
    STD_TORCH_CHECK(args.codes == KvCodes::none, "rung ", rung, " reads no cache of codes");
    return false;
  }
  const bool tensor_cores = rung == "tensor";
  const Memory memory(call, q, attention_bytes(args, tensor_cores));
  attention(args, memory.start(), tensor_cores, stream);
  return true;
}

void attend_on_tensor_cores(Call& call, const std::string& rung, const AttentionArgs& p, const Tensor& q, Stream stream) {
  const char* op = "paged_attention";
  STD_TORCH_CHECK(rung == "v3" || rung == "v4" || rung == "d2" || rung == "d3", op, ": there is no rung ", rung);
  STD_TORCH_CHECK(can_use_tensor_cores(p), op, ": rung ", rung, " takes bfloat16 and float16, head_dim 64 and 128 only");
  if (rung != "d3") return (rung == "v3" ? attention_v3 : rung == "v4" ? attention_v4 : decode_d2)(p, stream);
  const Memory memory(call, q, split_bytes(p));
  attention_in_splits(p, memory.start(), stream);
}

Tensor attend(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
              const Tensor& query_start, const Tensor& kv_len, double scale, int64_t window, const std::string& rung,
              int64_t max_kv_len, int64_t stream) {
  const char* op = "paged_attention";
  Tensor out = like(q, {q.size(0), q.size(1), q.size(2)});
  AttentionArgs args = attention_args(op, q, k_cache, v_cache, block_table, query_start, kv_len, out, scale, window);
  Call call(op);
  call.with("q", q).with("k_cache", k_cache).with("v_cache", v_cache).with("block_table", block_table);
  call.with("query_start", query_start).with("kv_len", kv_len).with("out", out);
  if (attend_as_engine(call, rung, args, q, as_stream(stream))) return call.done(), out;
  if (rung == "v1") {
    auto scratch = [&](std::vector<int64_t> shape) { return torch::stable::new_empty(q, shape, ScalarType::Float); };
    Tensor scores = scratch({q.size(1), q.size(0), max_kv_len}), sums = scratch({q.size(1), q.size(0)});
    call.with("scores", scores).with("sums", sums);
    attention_v1(args, {static_cast<float*>(scores.mutable_data_ptr()), static_cast<float*>(sums.mutable_data_ptr()),
                        static_cast<int>(max_kv_len)},
                 as_stream(stream));
  } else if (rung == "v2") {
    attention_v2(args, as_stream(stream));
  } else if (rung == "d1") {
    decode_d1(args, as_stream(stream));
  } else {
    attend_on_tensor_cores(call, rung, args, q, as_stream(stream));
  }
  call.done();
  return out;
}

Tensor attend_variant(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
                      const Tensor& query_start, const Tensor& kv_len, double scale, int64_t window, double softcap,
                      const Optional& sinks, const std::string& rung, int64_t stream) {
  const char* op = "variant_attention";
  Tensor out = like(q, {q.size(0), q.size(1), q.size(2)});
  AttentionArgs args = attention_args(op, q, k_cache, v_cache, block_table, query_start, kv_len, out, scale, window);
  Call call(op);
  call.with("q", q).with("k_cache", k_cache).with("v_cache", v_cache).with("block_table", block_table);
  call.with("query_start", query_start).with("kv_len", kv_len).with("out", out);
  args.softcap = static_cast<float>(softcap);
  if (sinks) {
    check(op, "sinks", *sinks, 1, q.scalar_type());
    check_size(op, "sinks' length", sinks->size(0), q.size(1));
    call.with("sinks", *sinks);
    args.sinks = data<void>(*sinks);
  }
  if (!attend_as_engine(call, rung, args, q, as_stream(stream))) {
    STD_TORCH_CHECK(rung == "v2" || rung == "d1", op, ": there is no rung ", rung, ", only v2 and d1");
    (rung == "v2" ? attention_v2 : decode_d1)(args, as_stream(stream));
  }
  call.done();
  return out;
}

}  // namespace

#define MINILLM_OPS(m)                                                                                              \
  MINILLM_ROW_OPS(m);                                                                                               \
  MINILLM_EXPERT_OPS(m);                                                                                            \
  MINILLM_CODES_OPS(m);                                                                                             \
  MINILLM_SAMPLING_OPS(m);                                                                                          \
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, str rung, bool float_out, int stream) -> Tensor");           \
  m.def(                                                                                                            \
      "rope_and_cache(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(a!) k_cache, "                   \
      "Tensor(b!) v_cache, Tensor positions, Tensor slot_mapping, int stream) -> Tensor");                          \
  m.def("copy_blocks(Tensor(a!)[] caches, Tensor source, Tensor destination, int stream) -> ()");                   \
  m.def(                                                                                                            \
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor query_start, "          \
      "Tensor kv_len, float scale, int window, str rung, int max_kv_len, int stream) -> Tensor");                   \
  m.def(                                                                                                            \
      "variant_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor query_start, "        \
      "Tensor kv_len, float scale, int window, float softcap, Tensor? sinks, str rung, int stream) -> Tensor");     \
  m.def(                                                                                                            \
      "verify_coupled(Tensor sampled, Tensor drafted, Tensor parents, Tensor node_start, int stream) "              \
      "-> (Tensor, Tensor)");                                                                                       \
  m.def(                                                                                                            \
      "verify_draft(Tensor draft, Tensor? draft_probs, Tensor target_probs, Tensor uniforms, int stream) "          \
      "-> (Tensor, Tensor)")

#define MINILLM_KERNELS(m)                                    \
  MINILLM_ROW_KERNELS(m);                                     \
  MINILLM_EXPERT_KERNELS(m);                                  \
  MINILLM_CODES_KERNELS(m);                                   \
  MINILLM_SAMPLING_KERNELS(m);                                \
  m.impl("linear", TORCH_BOX(&multiply));                     \
  m.impl("rope_and_cache", TORCH_BOX(&rotate_and_cache));     \
  m.impl("copy_blocks", TORCH_BOX(&copy));                    \
  m.impl("paged_attention", TORCH_BOX(&attend));              \
  m.impl("variant_attention", TORCH_BOX(&attend_variant));    \
  m.impl("verify_coupled", TORCH_BOX(&walk_drafts));          \
  m.impl("verify_draft", TORCH_BOX(&accept_drafts))

MINILLM_FRAGMENT(MINILLM_NAMESPACE, m) { MINILLM_OPS(m); }
MINILLM_IMPL(MINILLM_NAMESPACE, MINILLM_KEY, m) { MINILLM_KERNELS(m); }

}  // namespace minillm::cuda
