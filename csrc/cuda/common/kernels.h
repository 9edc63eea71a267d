// The launchers of csrc/cuda, called by bind.cpp. They take plain pointers and sizes: no torch, no CUDA types.
//
// A launcher starts its kernels on `stream` and returns. The caller checks shapes and refuses those that the
// kernel does not support.

#pragma once

#include "model.h"

namespace minillm::cuda {

using minillm::DType;
using minillm::KvCodes;

// Which rows of the token dimension belong to which sequence (pictured in minillm/ops/contract.py).
struct Sequences {
  const int32_t* block_table;  // [num_seqs, max_blocks]
  const int32_t* query_start;  // [num_seqs + 1]
  const int32_t* kv_len;       // [num_seqs]; 0: a row that fills up a batch; its result is 0
  int num_seqs, max_blocks, num_tokens;
};

struct NormArgs {
  const void *x, *residual, *weight;  // residual: null in rms_norm and layer_norm
  void *y, *sum;                      // sum: null in rms_norm and layer_norm
  int rows, size;
  float eps;
  DType dtype;
  float offset = 0;                   // added to the weight of rms_norm
  const void* bias = nullptr;         // of layer_norm
  int parts = 1;                      // a row is [parts, size], and each part is normed apart
  int64_t stride = 0;                 // elements between two rows of x and of y; 0: dense. y may equal x
};

struct GatherArgs {
  const void* table;                  // [any, size]
  const int64_t* ids;                 // [rows]: the row of `table` that each row takes
  const void* positions;              // [max_positions, size], a second table whose rows are added, or null
  const int64_t* position_ids;        // [rows]
  void* y;                            // [rows, size]
  int rows, size;
  float scale;                        // of the table's rows; 1: none
  DType dtype;
  Form form = {};                     // of a quantised table: gather_codes alone reads it
  int64_t table_rows = 0;             // of a quantised table
};

enum class Map { multiply, divide, add };

struct MapArgs {
  const void* x;
  const void* other;                  // of add
  void* y;                            // may equal x or other
  int64_t count;                      // elements
  float number;                       // of multiply and divide
  DType dtype;
};

enum class Function { silu, gelu, gelu_tanh, relu, swiglu_clamped, softcap };

struct ActivationArgs {
  const void* x;        // [rows, 2 * size], gate and up, in act_and_mul; else [rows, size]
  void* y;              // [rows, size]
  int rows, size;
  Function function;
  float cap;            // of softcap
  DType dtype;
};

struct RopeArgs {
  const void *q, *k, *v;                  // [num_tokens, heads, head_dim], rows `stride` elements apart
  int64_t q_stride, k_stride, v_stride;
  const float *cos, *sin;                 // [max_positions, rotary_dim / 2]
  const int64_t *positions, *slots;       // [num_tokens]; with a negative slot, k and v are not written
  void *q_out, *k_cache, *v_cache;        // q_out dense
  int num_tokens, num_heads, num_kv_heads, head_dim, rotary_dim;
  DType dtype;
  KvCodes codes = KvCodes::none;          // of the caches; others than none: rope_and_codes alone writes them
  int block_size = 0;                     // of a cache of codes
};

struct CopyBlocksArgs {
  void* cache;                            // [num_blocks, block_bytes]
  const int64_t *source, *destination;    // [count]
  int64_t block_bytes;
  int count;
};

struct LinearArgs {
  const void *x, *weight, *bias;  // [rows, in], [out, in], [out] or null
  void* y;                        // [rows, out]
  int rows, in, out;
  DType dtype;
  bool float_out = false;         // y is float32, whatever dtype is: linear_l5 alone can
  Form form = {};                 // of a quantised weight: linear_q1 alone reads it
};

struct RouteArgs {
  const void* logits;             // [rows, num_experts]
  int64_t* chosen;                // [rows, per_token]
  float* weights;                 // [rows, per_token]
  int rows, num_experts, per_token;
  bool renormalize;               // the weights of the chosen experts sum to 1
  DType dtype;
};

struct GroupArgs {
  const int64_t* chosen;          // [pairs]: the experts of each token, `per_token` of each
  int32_t* starts;                // [num_experts + 1]: the first row of each expert, and the end of the last
  int64_t* order;                 // [pairs]: the token of each row; rows of no expert come last
  int64_t* place;                 // [pairs]: the row of each pair; -1: its expert does not exist
  int pairs, per_token, num_experts;
};

struct ExpertLinearArgs : LinearArgs {  // rows of all experts; weight and bias begin with those of expert 0
  const int32_t* starts;          // [num_experts + 1]: expert e has rows starts[e] to starts[e + 1] of x and y
  int num_experts;
  int pitch;                      // rows from one expert's matrix to the next, at least `out`
};

struct CombineArgs {
  const void* outputs;            // [rows * per_token, size], in any order
  const float* weights;           // [rows, per_token]
  const int64_t* place;           // [rows, per_token]: rows of `outputs`; -1: there is none, NaN stands for it
  void* y;                        // [rows, size]
  int rows, size, per_token;
  DType dtype;
};

struct AttentionArgs {
  const void* q;                    // [num_tokens, num_heads, head_dim], rows q_stride elements apart
  int64_t q_stride;
  const void *k_cache, *v_cache;    // [num_blocks, block_size, num_kv_heads, head_dim]
  void* out;                        // like q, dense
  Sequences sequences;
  int num_heads, num_kv_heads, head_dim, block_size;
  float scale;
  int window;                       // most keys a row sees, its own included; 0: all
  DType dtype;
  float softcap = 0;                // scores s become softcap * tanh(s / softcap); 0: they stay
  const void* sinks = nullptr;      // [num_heads], or null: a score of each head that adds no value
  KvCodes codes = KvCodes::none;    // of the caches; others than none: attention_q1 alone reads them
};

struct NaiveScratch {               // of attention_v1, float
  float* scores;                    // [num_heads, num_tokens, max_kv_len]
  float* sums;                      // [num_heads, num_tokens]
  int max_kv_len;
};

struct SplitScratch {               // of decode_d3, float
  float* softmax;                   // [splits, num_tokens, num_heads, 2]: largest score and sum
  float* out;                       // [splits, num_tokens, num_heads, head_dim]
  int splits;                       // num_splits of the longest sequence, or more
};

constexpr int kMaxTokenIds = 1 << 21;  // of `sample`

struct SampleArgs {
  const void* logits;               // [rows, vocab_size]
  const uint64_t* keys;             // [rows]
  const double* numbers;            // [rows, 4]: temperature, top_p, min_p, repetition penalty
  const int64_t *top_k, *seen, *seen_end;  // [rows]; ids row after row, each once per row; [rows]
  void* scratch;                    // sample_scratch_bytes(rows, num_token_ids), at a multiple of 16 bytes
  int64_t* tokens;                  // [rows]
  int rows, vocab_size, num_token_ids;
  int first_row;                    // of a launch; set by the launcher
  DType dtype;
  const bool* finite = nullptr;     // [rows]: a row that is false is skipped, its token is 0; null: none is
};

struct FiniteArgs {
  const void* logits;               // [rows, size]
  bool* finite;                     // [rows]: all numbers of the row are finite
  int rows, size;
  DType dtype;
};

struct CoupledArgs {
  const int64_t *sampled, *drafted, *parents;  // [num_nodes]
  const int64_t* node_start;        // [requests + 1], from 0 to num_nodes
  int64_t *tokens, *nodes;          // [num_nodes]
  int requests;
};

struct DraftArgs {
  const int64_t* draft;             // [requests, k], ids below vocab_size; a negative entry is padding
  const float* draft_probs;         // [requests, k, vocab_size]; null: each drafted token had probability 1
  const float* target_probs;        // [requests, k + 1, vocab_size]
  const double* uniforms;           // [requests, k + 1]
  int64_t *tokens, *accepted;       // [requests, k + 1], [requests]
  int requests, k, vocab_size;
};

using Stream = void*;

void rms_norm(const NormArgs&, Stream);
void layer_norm(const NormArgs&, Stream);
void gather(const GatherArgs&, Stream);
void gather_codes(const GatherArgs&, Stream);
void map(Map, const MapArgs&, Stream);
void act_and_mul(const ActivationArgs&, Stream);  // not softcap
void act(const ActivationArgs&, Stream);          // not swiglu_clamped
void rope_and_cache(const RopeArgs&, Stream);
void rope_and_codes(const RopeArgs&, Stream);
void copy_blocks(const CopyBlocksArgs&, Stream);
void linear_l1(const LinearArgs&, Stream);
void linear_l2(const LinearArgs&, Stream);
void linear_l3(const LinearArgs&, Stream);
// On tensor cores: 16-bit, `in` a multiple of 8 below 2^24, all at multiples of 16 bytes.
void linear_l4(const LinearArgs&, Stream);  // no float_out
void linear_l5(const LinearArgs&, Stream);
void linear_q1(const LinearArgs&, Stream);  // quantised

void route(const RouteArgs&, Stream);  // per_token is 1 to num_experts
void group(const GroupArgs&, Stream);
void linear_experts(const ExpertLinearArgs&, Stream);     // rows of no expert are not written
void linear_l5_experts(const ExpertLinearArgs&, Stream);  // like linear_l5
void linear_q1_experts(const ExpertLinearArgs&, Stream);  // quantised
void combine(const CombineArgs&, Stream);

void sample(const SampleArgs&, Stream);
int64_t sample_scratch_bytes(int rows, int num_token_ids);
void finite_rows(const FiniteArgs&, Stream);
void verify_coupled(const CoupledArgs&, Stream);
void verify_draft(const DraftArgs&, Stream);  // a target row of zeros gives -1: no token can be drawn

bool supports_head_dim(int head_dim);
// softcap and sinks: attention_v2 and decode_d1 only.
void attention_v1(const AttentionArgs&, const NaiveScratch&, Stream);
void attention_v2(const AttentionArgs&, Stream);
void attention_v3(const AttentionArgs&, Stream);  // 16-bit, head_dim 64 or 128
void attention_v4(const AttentionArgs&, Stream);  // like attention_v3; sm_90a
void decode_d1(const AttentionArgs&, Stream);
void decode_d2(const AttentionArgs&, Stream);     // like attention_v3
void decode_d3(const AttentionArgs&, const SplitScratch&, Stream);  // like attention_v3
int num_splits(int max_kv_len);
void attention_q1(const AttentionArgs&, Stream);  // a cache of codes

}  // namespace minillm::cuda
