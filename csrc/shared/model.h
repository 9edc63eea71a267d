// A whole model as csrc/cpu and csrc/cuda see it: what minillm/config/model.py describes, with the weights of
// minillm/ops/fused.py. A part that a family lacks has a null pointer, and a number that it does not use has the value
// that changes nothing.

#pragma once

#include "types.h"

namespace minillm {

// A mixture of experts. The matrices of all experts lie one below the other, each filled up to whole blocks of 16
// rows. So a block of a packed matrix belongs to one expert, and the other experts are not read.
//
//     gate_up  [count * expert_rows(2 * size), hidden]      down  [count * expert_rows(hidden), size]
struct Experts {
  int64_t count, per_token, size;
  bool renormalize;  // the weights of the chosen experts sum to 1
};
inline int64_t expert_rows(int64_t size) { return (size + 15) / 16 * 16; }

// One layer's weights. Their names and sizes are in places.h.
struct LayerWeights {
  Norm input_norm;  // [hidden]
  Matrix qkv;
  Norm q_norm, k_norm;  // [head_dim], or of all heads
  const void* sinks;    // [num_heads], or null
  Matrix o;
  Norm attention_output_norm, mlp_norm;  // [hidden]
  Matrix gate_up, down;                  // of an MLP
  Matrix router, expert_gate_up, expert_down;
  Norm mlp_output_norm;  // [hidden]
};

struct Layer {
  LayerWeights weights;
  LayerCache cache;
  RopeTables rope;  // without columns: q and k are not rotated
  bool has_rope;    // whether `rope` is bound
  int64_t window;  // most keys a row sees, its own included; 0: all
  float scale;     // of attention scores
  float softcap;   // of attention scores; 0: none
  Experts experts;  // count 0: the layer has one MLP
};

struct Model {
  const Layer* layers;
  int64_t num_layers, hidden, intermediate, vocab;
  Heads heads;
  Matrix embedding, head;  // [vocab, hidden]
  const void* positions;   // [max_positions, hidden], or null
  Norm final_norm;         // [hidden]
  Activation activation;
  bool gated;
  float eps, norm_offset;
  float embedding_scale, residual_scale, logits_divisor;  // 1: none
  float logits_softcap;                                   // 0: none
};

// The input of a pass through a whole model.
struct PassArgs {
  Batch batch;
  const int64_t* ids;  // [num_tokens]
};

// The sampling parameters of each row of logits: `SamplingBatch.tensors` in minillm/ops/sampling.py.
struct Draws {
  int64_t rows, num_token_ids;
  const int64_t* keys;      // [rows]
  const double* numbers;    // [rows, 4]: temperature, top_p, min_p, repetition_penalty
  const int64_t* top_k;     // [rows]
  const int64_t* seen;      // ids that get the repetition penalty, row after row, each id once per row
  const int64_t* seen_end;  // [rows]: the end of each row's ids in `seen`
  int64_t num_seen;
};

// Several decode steps of a whole model. Sequences are sorted by depth, the deepest first.
struct AheadArgs {
  PassArgs first;  // the first step; the later steps have one row per sequence
  int64_t num_token_ids;
  const int64_t* depths;  // [num_seqs]: tokens to draw for each sequence, in falling order
  int64_t count;          // the largest depth
  const int64_t* keys;    // [count, num_seqs]
  const double* numbers;  // [num_seqs, 4], as in Draws; the repetition penalty is 1
  const int64_t* top_k;   // [num_seqs]
};

}  // namespace minillm
