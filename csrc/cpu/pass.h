// One pass over a whole model: from token ids to the logits behind each sequence's last row.
//
//     ids -> embedding -> norm -> layers -> last rows -> head -> logits [num_seqs, vocab]
//
// It computes nothing itself: these are the kernels that the ops of the same names run, on the same rounded
// numbers, so the bits are those of minillm/model/decoder.py (a test compares them). What it saves is a dozen
// ways in and out of Python: to a model that lies in the caches they are a good part of a step, and behind a large
// one, whose weights have swept the caches, each costs three times as much.

#pragma once

#include "buffer.h"

namespace minillm {

class Pass {
 public:
  // `args` has the batch with the most rows that `run` will be given.
  Pass(const Kernels& kernels, const PassArgs& args)
      : kernels_(kernels),
        a_(args),
        residual_(args.layers.batch.num_tokens, args.layers.hidden, width_of(args.dtype)),
        x_(args.layers.batch.num_tokens, args.layers.hidden, width_of(args.dtype)) {}

  void run(const Batch& batch, const int64_t* ids, void* logits) const {
    int64_t rows = batch.num_tokens, hidden = a_.layers.hidden;
    kernels_.embedding({ids, rows, a_.embedding.packed, hidden, residual_.get(), a_.dtype, a_.embedding.dtype});
    kernels_.norm({residual_.get(), nullptr, a_.first_norm, nullptr, x_.get(), rows, 1, hidden, hidden, hidden,
                   a_.layers.eps, a_.dtype});
    LayersArgs layers = a_.layers;
    layers.batch = batch;
    layers.residual = residual_.get();
    layers.x = x_.get();
    layers.last_only = true;
    run_layers(kernels_, layers);
    kernels_.linear({x_.get(), hidden, a_.head.packed, nullptr, logits, batch.num_seqs, a_.vocab, hidden, a_.dtype,
                     a_.head.dtype, nullptr});
  }

  // A token from each row of logits that is finite.
  void draw(const SampleArgs& args, bool* finite) const {
    finite_rows({args.logits, args.dtype, args.rows, args.vocab, finite});
    SampleArgs of_healthy = args;
    of_healthy.finite = finite;
    sample(kernels_, of_healthy);
  }

 private:
  const Kernels& kernels_;
  const PassArgs& a_;
  const Buffer residual_, x_;
};

}  // namespace minillm
