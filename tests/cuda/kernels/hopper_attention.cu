// A C entry point to attention_v4, for test_hopper_mutants.py: heads of 64 in bfloat16.

#include "attention_v4.cu"

extern "C" void run(const bfloat16* q, const bfloat16* k_cache, const bfloat16* v_cache, bfloat16* out,
                    const int* block_table, const int* query_start, const int* kv_len, int num_seqs, int max_blocks,
                    int num_tokens, int q_stride, int block_size) {
  using namespace minillm::cuda;
  AttentionArgs args = {q, q_stride, k_cache, v_cache, out,
                        {block_table, query_start, kv_len, num_seqs, max_blocks, num_tokens},
                        2, 1, 64, block_size, 0.2f, 0, minillm::DType::bf16};
  attention_v4(args, nullptr);
}
