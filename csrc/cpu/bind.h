// What the torch binding of csrc/cpu adds to csrc/shared: the kernels in use, and the sampler's arguments.

#pragma once

#include "bound.h"
#include "passes.h"

namespace minillm::cpu {

const Kernels& kernels();  // of the instruction set in use

// Whether a matrix [out, in] may be stored in `dtype` where activations are in `wide`. An odd `in` is refused: the
// padding of the last pair would add one more product to each sum.
inline bool narrower(DType dtype, DType wide, int64_t in) {
  return dtype == DType::bf16 && wide == DType::f32 && in % 2 == 0;
}

// The caller sets the pointers to the logits and the tokens.
SampleArgs sample_args(const Draws& draws, int64_t vocab, DType dtype);

}  // namespace minillm::cpu
