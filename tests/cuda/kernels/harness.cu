// C entry points to one kernel file, float32 only. test_cuda_mutants.py compiles it together with a changed
// copy of the kernel: -DKERNEL="attention_v2.cu" -DLAUNCHER=attention_v2. norm, linear and activation also in 16 bits:
// -DNUMBER=bfloat16 -DDTYPE=bf16

#include KERNEL

#ifndef NUMBER
#define NUMBER float
#define DTYPE f32
#endif

using namespace minillm::cuda;
using minillm::DType;

#if defined(IS_ATTENTION)
extern "C" void run(const float* q, const float* k_cache, const float* v_cache, float* out, const int* block_table,
                    const int* query_start, const int* kv_len, int num_seqs, int max_blocks, int num_tokens, int q_stride,
                    int num_heads, int num_kv_heads, int head_dim, int block_size, float scale, int window, float softcap,
                    const float* sinks) {
  AttentionArgs args = {q, q_stride, k_cache, v_cache, out,
                        {block_table, query_start, kv_len, num_seqs, max_blocks, num_tokens},
                        num_heads, num_kv_heads, head_dim, block_size, scale, window, DType::f32, softcap,
                        softcap > 0 ? sinks : nullptr};
  LAUNCHER(args, nullptr);
}
#elif defined(IS_TENSOR)
// Heads of 64 in bfloat16.
extern "C" void run(const bfloat16* q, const bfloat16* k_cache, const bfloat16* v_cache, bfloat16* out,
                    const int* block_table, const int* query_start, const int* kv_len, float* softmax, float* parts,
                    int num_seqs, int max_blocks, int num_tokens, int q_stride, int splits) {
  AttentionArgs args = {q, q_stride, k_cache, v_cache, out,
                        {block_table, query_start, kv_len, num_seqs, max_blocks, num_tokens},
                        6, 2, 64, 4, 0.2f, 100, DType::bf16};
#if defined(IS_V3)
  attention_v3(args, nullptr);
#elif defined(IS_D2)
  decode_d2(args, nullptr);
#else
  decode_d3(args, {softmax, parts, splits}, nullptr);
#endif
}
#elif defined(IS_NAIVE)
extern "C" void run(const float* q, const float* k_cache, const float* v_cache, float* out, const int* block_table,
                    const int* query_start, const int* kv_len, int num_seqs, int max_blocks, int num_tokens, int q_stride,
                    int num_heads, int num_kv_heads, int head_dim, int block_size, float scale, int window,
                    float* scores, float* sums, int max_kv_len) {
  AttentionArgs args = {q, q_stride, k_cache, v_cache, out,
                        {block_table, query_start, kv_len, num_seqs, max_blocks, num_tokens},
                        num_heads, num_kv_heads, head_dim, block_size, scale, window, DType::f32};
  attention_v1(args, {scores, sums, max_kv_len}, nullptr);
}
#elif defined(IS_NORM)
// add_rms_norm, rms_norm with an offset of 1, layer_norm, and rms_norm of two heads a row, in place.
extern "C" void run(const NUMBER* x, const NUMBER* residual, const NUMBER* weight, const NUMBER* bias, NUMBER* y,
                    NUMBER* moved, NUMBER* layer, NUMBER* sum, NUMBER* heads, int rows, int size, int stride) {
  rms_norm({x, residual, weight, y, sum, rows, size, 1e-5f, DType::DTYPE}, nullptr);
  rms_norm({x, nullptr, weight, moved, nullptr, rows, size, 1e-5f, DType::DTYPE, 1.0f}, nullptr);
  layer_norm({x, nullptr, weight, layer, nullptr, rows, size, 1e-5f, DType::DTYPE, 0.0f, bias}, nullptr);
  rms_norm({heads, nullptr, weight, heads, nullptr, rows, size, 1e-5f, DType::DTYPE, 0.0f, nullptr, 2, stride}, nullptr);
}
#elif defined(IS_GATHER)
extern "C" void run(const float* table, const int64_t* ids, const float* positions, const int64_t* position_ids, float* y,
                    int rows, int size, float scale, int is_learned) {
  gather({table, ids, is_learned ? positions : nullptr, position_ids, y, rows, size, scale, DType::f32}, nullptr);
}
#elif defined(IS_MAP)
// Sum, product and quotient.
extern "C" void run(const float* x, const float* other, float* sum, float* product, float* quotient, int rows, int size,
                    float number) {
  int64_t count = int64_t{rows} * size;
  map(Map::add, {x, other, sum, count, number, DType::f32}, nullptr);
  map(Map::multiply, {x, nullptr, product, count, number, DType::f32}, nullptr);
  map(Map::divide, {x, nullptr, quotient, count, number, DType::f32}, nullptr);
}
#elif defined(IS_LINEAR)
extern "C" void run(const NUMBER* x, const NUMBER* weight, const NUMBER* bias, NUMBER* y, int rows, int in, int out) {
  LAUNCHER({x, weight, bias, y, rows, in, out, DType::DTYPE}, nullptr);
}
#elif defined(IS_LINEAR_MMA)
// Any shape of tile for any number of rows; with -1 the launcher chooses. bfloat16 in, float32 out.
extern "C" void run(const bfloat16* x, const bfloat16* weight, const bfloat16* bias, float* y, int rows, int in, int out,
                    int shape) {
  LinearArgs args = {x, weight, bias, y, rows, in, out, DType::bf16, true};
  if (shape < 0) linear_l5(args, nullptr);
  if (shape == 0) launch<bfloat16, Tile16x8>(args, nullptr);
  if (shape == 1) launch<bfloat16, Tile16x16>(args, nullptr);
  if (shape == 2) launch<bfloat16, Tile32x32>(args, nullptr);
  if (shape == 3) launch<bfloat16, Tile64x64>(args, nullptr);
  if (shape == 4) launch<bfloat16, Tile128x128>(args, nullptr);
}
#elif defined(IS_ACTIVATION)
extern "C" void run(const NUMBER* x, NUMBER* y, int rows, int size, int function, int gated) {
  ActivationArgs args = {x, y, rows, size, static_cast<Function>(function), 3.0f, DType::DTYPE};
  gated ? act_and_mul(args, nullptr) : act(args, nullptr);
}
#elif defined(IS_ROUTE)
extern "C" void run(const float* logits, int64_t* chosen, float* weights, int rows, int num_experts, int per_token,
                    int renormalize) {
  route({logits, chosen, weights, rows, num_experts, per_token, renormalize != 0, DType::f32}, nullptr);
}
#elif defined(IS_COMBINE)
extern "C" void run(const float* outputs, const float* weights, const int64_t* place, float* y, int rows, int size,
                    int per_token) {
  combine({outputs, weights, place, y, rows, size, per_token, DType::f32}, nullptr);
}
#elif defined(IS_ROPE)
extern "C" void run(const float* q, const float* k, const float* v, const float* cos, const float* sin,
                    const int64_t* positions, const int64_t* slots, float* q_out, float* k_cache, float* v_cache,
                    int num_tokens, int num_heads, int num_kv_heads, int head_dim, int rotary_dim) {
  rope_and_cache({q, k, v, num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim, cos, sin, positions,
                  slots, q_out, k_cache, v_cache, num_tokens, num_heads, num_kv_heads, head_dim, rotary_dim, DType::f32},
                 nullptr);
}
#elif defined(IS_COPY)
extern "C" void run(float* cache, const int64_t* source, const int64_t* destination, int block_bytes, int count) {
  copy_blocks({cache, source, destination, block_bytes, count}, nullptr);
}
#elif defined(IS_VERIFY)
// Runs both kernels; with `certain` there are no draft probabilities.
extern "C" void run(const int64_t* sampled, const int64_t* drafted, const int64_t* parents, const int64_t* node_start,
                    int64_t* walked, int64_t* nodes, int trees, const int64_t* draft, const float* draft_probs,
                    const float* target_probs, const double* uniforms, int64_t* tokens, int64_t* accepted, int requests,
                    int k, int vocab, int certain) {
  verify_coupled({sampled, drafted, parents, node_start, walked, nodes, trees}, nullptr);
  verify_draft({draft, certain ? nullptr : draft_probs, target_probs, uniforms, tokens, accepted, requests, k, vocab},
               nullptr);
}
#endif
