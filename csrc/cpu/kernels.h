// The kernels of csrc/cpu: plain functions over pointers and sizes, without torch. Those in `Kernels` are compiled
// once for each instruction set.
//
// Sizes and strides count elements, not bytes. Matrices are row-major unless a comment says
// otherwise. Rows may be strided (`*_stride` is the distance between two rows); inner dimensions are dense.
//
// Packed weights, the layout of every matrix with `out` outputs and `in` inputs:
//
//     bf16         [out / 16][in / 2][16][2]    one 64-byte load: 16 outputs x a pair along `in`
//     fp16, fp32   [out / 16][in][16]           16 outputs x one step along `in`
//
// `out` is rounded up to 16 and `in` to whole pairs; the padding is zeros. If all numbers of a float32 model's
// matrix are exact in bf16, the matrix is stored as bf16 (minillm/ops/cpu.py), so a matrix has its own dtype beside
// that of the activations. Measurements: csrc/README.md, "CPU kernels".

#pragma once

#include "types.h"

namespace minillm::cpu {

// Keys per step of the online softmax. Tiles have absolute positions: tile i is keys 64 i .. 64 i + 63 of a sequence.
constexpr int64_t kKeyTile = 64;
constexpr int64_t kPackLanes = 16;

// The shape of a packed matrix: the number of blocks of 16 outputs, and the elements of one block.
inline int64_t packed_blocks(int64_t out) { return (out + kPackLanes - 1) / kPackLanes; }
inline int64_t packed_block_size(int64_t in, DType dtype) {
  return kPackLanes * (dtype == DType::bf16 ? (in + 1) / 2 * 2 : in);
}

// Runs `body(begin, end, context)` over disjoint ranges on several threads. Inside a `parallel_region` these are the
// threads of the region, which spin and start at once; otherwise they are threads of torch's pool.
using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
void parallel_ranges(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context);
void parallel_region(void (*work)(void* context), void* context);
bool in_parallel_region();

// Torch's pool, set by the binding.
extern void (*pool_ranges)(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context);
extern int64_t (*thread_count)();

struct PackArgs {
  const void* source;  // [out, in]
  void* packed;        // may equal `source` if the layout needs no padding
  int64_t out, in;
  DType dtype;
};

struct EmbeddingArgs {
  const int64_t* ids;
  int64_t num_tokens;
  Matrix weight;  // [vocab, in]
  int64_t in;
  void* y;  // [num_tokens, in]
  DType dtype;
};

struct LinearArgs {
  const void* x;  // [rows, in]
  int64_t x_stride;
  Matrix weight;  // [out, in]
  void* y;        // [rows, out]
  int64_t rows, out, in;
  DType dtype;
  const void* prefetch_next;  // the packed weights that the next kernel reads, or null
};

struct NormArgs {
  const void* x;         // [rows, parts, size]
  const void* residual;  // [rows, parts, size], or null for the norm of x alone
  Norm norm;             // `size` is that of a part
  void* sum;             // [rows, parts, size]: x + residual; may equal `residual`
  void* y;               // [rows, parts, size]; may equal `x`
  int64_t rows, parts;   // parts: heads per row, each normalised separately
  int64_t x_stride, y_stride;  // between rows; residual and sum are dense
  float eps, offset;           // RMSNorm multiplies by weight + offset
  DType dtype;
};

struct GateArgs {
  const void* gate_up;  // [rows, 2 * size]: gate, then up
  void* y;              // [rows, size]
  int64_t rows, size;
  Activation activation;
  DType dtype;
};

// A function of single numbers. `number` is the factor, the divisor or the cap.
enum class Map : int { activation, multiply, divide, softcap };
struct MapArgs {
  const void* x;  // [rows, size]
  void* y;        // [rows, size]; may equal `x`
  int64_t rows, size;
  Map map;
  float number;
  Activation activation;
  DType dtype;
};

struct AddArgs {
  const void* x;           // [rows, size]
  const void* y;           // [rows, size]; with `y_rows` a table of rows
  const int64_t* y_rows;   // [rows]: the row of `y` that each row takes, or null
  void* sum;               // [rows, size]; may equal `x` or `y`
  int64_t rows, size;
  DType dtype;
};

struct RopeArgs {
  const void *q, *k, *v;  // [num_tokens, heads, head_dim]
  int64_t q_stride, k_stride, v_stride;
  RopeTables rope;
  LayerCache cache;
  void* q_out;  // [num_tokens, num_heads, head_dim]; may equal `q`
  int64_t q_out_stride;
  Batch batch;
  Heads heads;
};

struct AttentionArgs {
  const void* q;  // [num_tokens, num_heads, head_dim]
  int64_t q_stride;
  const void *k_cache, *v_cache;  // as LayerCache
  void* out;  // [num_tokens, num_heads, head_dim], dense
  Batch batch;
  Heads heads;
  float scale;
  int64_t window;     // most keys a row sees, its own included; 0: all
  float softcap;      // scores s become softcap * tanh(s / softcap); 0: they stay
  const void* sinks;  // [num_heads]: a score of each head that has no value, or null
};

// Rows of activations, each with `per_token` of `count` experts.
struct RouteArgs {
  const void* logits;  // [rows, count]
  int64_t rows, count, per_token;
  bool renormalize;
  int64_t* chosen;  // [rows, per_token], rising in each row
  float* weights;   // [rows, per_token]
  DType dtype;
};

struct CombineArgs {
  const void* outputs;     // [rows * per_token, size], in any order
  const int64_t* places;   // [rows, per_token]: the row of `outputs` of each choice
  const float* weights;    // [rows, per_token]
  void* y;                 // [rows, size]: the weighted sums, in the order of the choices
  int64_t rows, per_token, size;
  DType dtype;
};

// The functions compiled for one instruction set.
struct Kernels {
  const char* name;
  void (*pack)(const PackArgs&);
  void (*embedding)(const EmbeddingArgs&);
  void (*linear)(const LinearArgs&);
  void (*norm)(const NormArgs&);
  void (*gate)(const GateArgs&);
  void (*map)(const MapArgs&);
  void (*add)(const AddArgs&);
  void (*rope_and_cache)(const RopeArgs&);
  void (*attention)(const AttentionArgs&);
  void (*route)(const RouteArgs&);
  void (*combine)(const CombineArgs&);
  float (*widen)(const void* x, int64_t size, float* y, DType dtype);  // y = x as float; returns the maximum
  int64_t (*first_highest)(const void* x, int64_t size, DType dtype);  // first index of the maximum; 0 if that is NaN
};

struct SampleArgs {
  const void* logits;  // [rows, vocab]
  DType dtype;
  int64_t rows, vocab, num_token_ids;
  const int64_t* keys;     // [rows]
  const double* numbers;   // [rows, 4]: temperature, top_p, min_p, repetition_penalty
  const int64_t* top_k;    // [rows]
  const int64_t* seen;     // ids that get the repetition penalty, row after row, each id once per row
  const int64_t* seen_end; // [rows]: the end of each row's ids in `seen`
  const bool* finite;      // [rows]: a row that is false is skipped and gets token 0; null: all rows are finite
  int64_t* tokens;         // [rows]
};

struct LogprobsArgs {
  const void* logits;  // [rows, vocab]
  DType dtype;
  int64_t rows, vocab, top;
  const int64_t* tokens;  // [rows]
  float* of_token;        // [rows]
  float* best;            // [rows, top]
  int64_t* best_ids;      // [rows, top]
};

struct FiniteArgs {
  const void* logits;  // [rows, vocab]
  DType dtype;
  int64_t rows, vocab;
  bool* finite;  // [rows]
};

struct CoupledArgs {
  const int64_t *sampled, *drafted, *parents;  // [num_nodes]
  const int64_t* node_start;                   // [requests + 1], in rising order
  int64_t requests;
  int64_t *tokens, *nodes;  // [num_nodes]
};

struct DraftArgs {
  const int64_t* draft;       // [requests, k], ids below vocab; a negative entry is padding
  const float* draft_probs;   // [requests, k, vocab]; null: each drafted token had probability 1
  const float* target_probs;  // [requests, k + 1, vocab]
  const double* uniforms;     // [requests, k + 1]
  int64_t requests, k, vocab;
  int64_t* tokens;    // [requests, k + 1]
  int64_t* accepted;  // [requests]
};

// Compiled once, without vector instructions: the same code for every instruction set.
void sample(const Kernels& kernels, const SampleArgs& args);
void token_logprobs(const Kernels& kernels, const LogprobsArgs& args);
void finite_rows(const FiniteArgs& args);
void verify_coupled(const CoupledArgs& args);
void verify_draft(const DraftArgs& args);  // a target row of zeros gives -1: no token can be drawn

// The instruction sets this library was built for, best first; the last entry is null. `runs_here` checks the CPU.
struct Isa {
  const Kernels* kernels;
  bool (*runs_here)();
};
extern const Isa kIsas[];

}  // namespace minillm::cpu
