// The passes over a whole model (csrc/shared/model.h).

#pragma once

#include "kernels.h"
#include "model.h"

namespace minillm::cpu {

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

// The rows of a pass through all layers.
struct LayersArgs {
  Batch batch;
  void* residual;  // [num_tokens, hidden]: on entry the embedding; updated in place
  void* x;         // [num_tokens, hidden]: on return the final norm's output
  bool last_only;  // return only the last row of each sequence: x is then [num_seqs, hidden]; no sequence is empty
};

// A pass, a look at its logits, and draws.
struct StepArgs {
  PassArgs pass;
  bool all_rows;             // logits of every row, or of the last row of each sequence
  const int64_t* draw_rows;  // [draws.rows]: the row of logits of each draw; null: all rows in order
  SampleArgs draws;          // without `logits` and `finite`
  void* logits;              // [num_tokens or num_seqs, vocab]
  bool* finite;              // for each row of logits: whether all its numbers are finite
};

void experts(const Kernels& kernels, const ExpertsArgs& args);
void run_layers(const Kernels& kernels, const Model& model, const LayersArgs& args);
void hidden_states(const Kernels& kernels, const Model& model, const PassArgs& args, void* x);  // [num_tokens, hidden]
void last_logits(const Kernels& kernels, const Model& model, const PassArgs& args, void* logits);  // [num_seqs, vocab]
void step(const Kernels& kernels, const Model& model, const StepArgs& args);
// `tokens` [num_seqs, args.count]; entries beyond a sequence's depth are not written.
void decode_ahead(const Kernels& kernels, const Model& model, const AheadArgs& args, int64_t* tokens);

}  // namespace minillm::cpu
