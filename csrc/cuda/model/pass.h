// A pass over a whole model on the kernels of csrc/cuda: from token ids to logits and drawn tokens.
//
//     ids -> gather (scale, positions) -> layers, norm -> last rows -> head (divisor, cap) -> finite? -> sample
//
// The kernels and their order are those of minillm/model/decoder.py, with results rounded to the storage type at the
// same places, so the bits equal those of the single ops (a test compares them). Which experts a layer uses, only the
// GPU knows: the launches are the same for all of them (experts/mixture.h).
//
// Rows that only fill up a batch to a fixed size have slot -1 and kv_len 0. They write nothing to the cache, no row
// reads them, and their logits are not used.

#pragma once

#include "bound.h"
#include "kernels.h"
#include "mixture.h"
#include "rungs.h"

namespace minillm::cuda {

// What decides how much scratch memory a pass needs.
struct Sizes {
  int64_t rows, draws, num_token_ids;
  bool gathers;  // whether it draws from some rows of the logits only: they are copied first
  int64_t seqs, table_width;  // the batch's: of them depends whether attention runs in splits
  bool tensor_cores;
};

// The scratch memory of a pass, cut from one piece.
struct Scratch {
  char *residual, *x, *qkv, *q, *attended, *added, *gate_up, *gated, *sampling, *drawn_from, *drawn_finite;
  char* parts;                     // of attention in splits
  char *router, *chosen, *shares;  // of layers with experts: logits, experts and their weights
  MixtureScratch mixture;

  // Cuts `base`, or only measures if it is null; `end` is the number of bytes.
  static Scratch cut(char* base, const Model& model, const Sizes& sizes, size_t& end);
};

class Pass {
 public:
  Pass(const BoundModel& bound, const Scratch& scratch, bool tensor_cores, Stream stream);

  // From ids to the final norm's output [num_tokens, hidden]. All pointers of `args` are the device's.
  void hidden(const PassArgs& args, void* x) const;
  // The logits of the rows `last_rows` [num_seqs, vocab]; null: of all rows [num_tokens, vocab].
  void logits(const PassArgs& args, const int64_t* last_rows, void* logits) const;
  // Which rows of logits [rows, vocab] are finite.
  void look(const void* logits, int64_t rows, bool* finite) const;
  // A token for each row of logits; 0 where it is not finite.
  void draw(const Draws& draws, const void* logits, const bool* finite, int64_t* tokens) const;
  // A token for each of `rows`, which may repeat, of logits [count, vocab].
  void draw_from(const Draws& draws, const void* logits, int64_t count, const int64_t* rows, int64_t* tokens) const;

 private:
  void attend(const Layer& layer, const void* x, const Batch& batch) const;
  void feed_forward(const LayerWeights& w, const void* x, int rows) const;
  void mix_experts(const Layer& layer, const void* x, int rows) const;
  // Adds `added` to the residual. Returns the input of the next part: the norm of the sum, in `x`, or the sum.
  const void* add(const Norm& after, const Norm& before, int rows, void* x) const;

  void linear(const void* x, const Matrix& w, void* y, int rows, int64_t out, int64_t in) const;
  void norm(const void* x, const void* residual, const Norm& norm, void* y, void* sum, int rows) const;
  void head_norm(char* x, const Norm& norm, int64_t heads, int rows) const;
  void map(Map kind, void* x, const void* other, int64_t rows, int64_t size, float number) const;

  const BoundModel& bound_;
  const Model& m_;
  const Scratch& s_;
  const bool tensor_cores_;  // the rungs that run on them are allowed (rungs.h)
  const Stream stream_;
  const DType dtype_;
  const int64_t width_, dim_, q_size_, kv_size_, qkv_size_, up_size_, cache_bytes_;
};

}  // namespace minillm::cuda
