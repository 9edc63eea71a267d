// The launches of a mixture of experts, from the experts of each token to the weighted sums of their outputs.
//
//     chosen -> group
//     x -> gather -> linear_experts (gate, up) -> act_and_mul -> linear_experts (down) -> combine -> y
//
// The same six launches whatever experts are chosen: the host waits for nothing, and a graph can repeat them.

#pragma once

#include <cstddef>

#include "kernels.h"

namespace minillm::cuda {

struct Mixture {
  Experts experts;
  Matrix gate_up, down;  // the stacked matrices and biases (model.h)
  Function activation;
  int64_t hidden;
  DType dtype;
  bool tensor_cores;  // the rungs that run on them are allowed (rungs.h)
};

// Rows, and the experts of each.
struct Routed {
  const void* x;          // [rows, hidden]
  const int64_t* chosen;  // [rows, per_token]; an expert that does not exist makes its row of the result NaN
  const float* weights;   // [rows, per_token]
  int64_t rows;
};

struct MixtureScratch {
  int32_t* starts;
  int64_t *order, *place;
  void *x, *gate_up, *gated, *outputs;

  // Cuts `base` from `end` on, or only measures if it is null; `end` is moved to the end of the last piece.
  static MixtureScratch cut(char* base, const Experts& experts, int64_t hidden, int64_t width, int64_t rows, size_t& end);
};

// y [rows, hidden]. There is at least one row.
void mix(const Mixture& m, const Routed& routed, const MixtureScratch& scratch, void* y, Stream stream);

}  // namespace minillm::cuda
