// A whole model, and the passes over it. `Model` has what minillm/config/model.py describes, with the weights of
// minillm/ops/fused.py; a part that a family lacks has a null pointer, and a number that it does not use has the value
// that changes nothing.

#pragma once

#include "kernels.h"

namespace minillm::cpu {

// A mixture of experts. The matrices of all experts lie one below the other, each filled up to whole blocks of 16
// rows. So a block of the packed matrix belongs to one expert, and the other experts are not read.
//
//     gate_up  [count * expert_rows(2 * size), hidden]      down  [count * expert_rows(hidden), size]
struct Experts {
  int64_t count, per_token, size;
  bool renormalize;  // the weights of the chosen experts sum to 1
};
inline int64_t expert_rows(int64_t size) { return packed_blocks(size) * kPackLanes; }

struct ExpertsArgs {
  const void* x;  // [rows, hidden]
  int64_t rows, hidden;
  Experts experts;
  const int64_t* chosen;  // [rows, per_token]
  const float* weights;   // [rows, per_token]
  Matrix gate_up, down;
  Activation activation;
  void* y;  // [rows, hidden]
  DType dtype;
};

// One layer's weights. Their names and sizes are in bind_places.h.
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

// The rows of a pass through all layers.
struct LayersArgs {
  Batch batch;
  void* residual;  // [num_tokens, hidden]: on entry the embedding; updated in place
  void* x;         // [num_tokens, hidden]: on return the final norm's output
  bool last_only;  // return only the last row of each sequence: x is then [num_seqs, hidden]; no sequence is empty
};

// The input of a pass through a whole model.
struct PassArgs {
  Batch batch;
  const int64_t* ids;  // [num_tokens]
};

// Several decode steps of a whole model. Sequences are sorted by depth, the deepest first.
struct AheadArgs {
  PassArgs first;  // the first step; the later steps have one row per sequence
  int64_t num_token_ids;
  const int64_t* depths;  // [num_seqs]: tokens to draw for each sequence, in falling order
  int64_t count;          // the largest depth
  const int64_t* keys;    // [count, num_seqs]
  const double* numbers;  // [num_seqs, 4], as for `sample`; the repetition penalty is 1
  const int64_t* top_k;   // [num_seqs]
  int64_t* tokens;        // [num_seqs, count]; entries beyond a sequence's depth are not written
};

void experts(const Kernels& kernels, const ExpertsArgs& args);
void run_layers(const Kernels& kernels, const Model& model, const LayersArgs& args);
void hidden_states(const Kernels& kernels, const Model& model, const PassArgs& args, void* x);  // [num_tokens, hidden]
void last_logits(const Kernels& kernels, const Model& model, const PassArgs& args, void* logits);  // [num_seqs, vocab]
// One pass and one draw per row of logits; finite[row] tells whether all logits of the row are finite.
void decode_step(const Kernels& kernels, const Model& model, const PassArgs& args, const SampleArgs& draws,
                 void* logits, bool* finite);
void decode_ahead(const Kernels& kernels, const Model& model, const AheadArgs& args);

}  // namespace minillm::cpu
