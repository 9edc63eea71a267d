// C entry points to the kernels of a KV cache in 8 bits, in float32. test_kv8_mutants.py compiles it together with a
// changed copy of a kernel: -DKERNEL="attention_q1.cu" -DIS_ATTENTION. `codes` is 1 for int8, 2 for fp8.

#include KERNEL

using namespace minillm::cuda;
using minillm::DType;
using minillm::KvCodes;

#if defined(IS_ATTENTION)
extern "C" void run(const float* q, const char* k_cache, const char* v_cache, float* out, const int* block_table,
                    const int* query_start, const int* kv_len, int num_seqs, int max_blocks, int num_tokens, int q_stride,
                    int num_heads, int num_kv_heads, int head_dim, int block_size, float scale, int window, float softcap,
                    const float* sinks, int codes) {
  attention_q1({q, q_stride, k_cache, v_cache, out,
                {block_table, query_start, kv_len, num_seqs, max_blocks, num_tokens},
                num_heads, num_kv_heads, head_dim, block_size, scale, window, DType::f32, softcap,
                softcap > 0 ? sinks : nullptr, static_cast<KvCodes>(codes)},
               nullptr);
}
#else
// q, k and v are dense.
extern "C" void run(const float* q, const float* k, const float* v, const float* cos, const float* sin,
                    const int64_t* positions, const int64_t* slots, float* q_out, char* k_cache, char* v_cache,
                    int num_tokens, int num_heads, int num_kv_heads, int head_dim, int rotary_dim, int block_size,
                    int codes) {
  rope_and_codes({q, k, v, num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim, cos, sin, positions,
                  slots, q_out, k_cache, v_cache, num_tokens, num_heads, num_kv_heads, head_dim, rotary_dim, DType::f32,
                  static_cast<KvCodes>(codes), block_size},
                 nullptr);
}
#endif
