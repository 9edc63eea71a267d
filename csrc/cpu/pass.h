// One pass over a whole model: from token ids to the logits of each sequence's last row.
//
//     ids -> embedding (scale, positions) -> layers, norm -> last rows -> head (divisor, cap) -> logits [num_seqs, vocab]
//
// A pass only calls kernels: the same ones that the ops of the same names run, on the same rounded numbers. So the
// bits equal those of minillm/model/decoder.py (a test compares them). It saves a dozen calls from Python. For a
// model that fits in the caches they take a large part of a step. After a large model, whose weights have evicted
// everything else from the caches, each call costs three times as much.

#pragma once

#include <cstring>

#include "buffer.h"
#include "passes.h"

namespace minillm::cpu {

class Pass {
 public:
  // For batches of up to `rows` rows.
  Pass(const Kernels& kernels, const Model& model, int64_t rows)
      : kernels_(kernels),
        m_(model),
        residual_(rows, model.hidden, width_of(model.heads.dtype)),
        x_(rows, model.hidden, width_of(model.heads.dtype)) {}

  // From ids to the final norm's output, for every row or only for the last row of each sequence.
  void hidden(const PassArgs& args, void* x, bool last_only) const {
    const DType dtype = m_.heads.dtype;
    int64_t rows = args.batch.num_tokens;
    kernels_.embedding({args.ids, rows, m_.embedding, m_.hidden, residual_.get(), dtype});
    map(residual_.get(), rows, m_.hidden, Map::multiply, m_.embedding_scale, 1);
    if (m_.positions)
      kernels_.add({residual_.get(), m_.positions, args.batch.positions, residual_.get(), rows, m_.hidden, dtype});
    run_layers(kernels_, m_, {args.batch, residual_.get(), x, last_only});
  }

  // For every row, or for the last row of each sequence.
  void logits(const PassArgs& args, void* logits, bool all_rows = false) const {
    int64_t rows = all_rows ? args.batch.num_tokens : args.batch.num_seqs;
    hidden(args, x_.get(), !all_rows);
    kernels_.linear({x_.get(), m_.hidden, m_.head, logits, rows, m_.vocab, m_.hidden, m_.heads.dtype, nullptr});
    map(logits, rows, m_.vocab, Map::divide, m_.logits_divisor, 1);
    map(logits, rows, m_.vocab, Map::softcap, m_.logits_softcap, 0);
  }

  // Draws a token from each row of logits that is finite.
  void draw(const SampleArgs& args, bool* finite) const {
    finite_rows({args.logits, args.dtype, args.rows, args.vocab, finite});
    SampleArgs of_healthy = args;
    of_healthy.finite = finite;
    sample(kernels_, of_healthy);
  }

  // Draws from some rows of logits, which may repeat. `finite` is for all of them.
  void draw_from(const StepArgs& args) const {
    int64_t row_bytes = m_.vocab * width_of(m_.heads.dtype), rows = args.draws.rows;
    const Buffer copies(rows, row_bytes, 1), finite(rows, 1, sizeof(bool));
    for (int64_t i = 0; i < rows; i++)
      memcpy(static_cast<char*>(copies.get()) + i * row_bytes,
             static_cast<const char*>(args.logits) + args.draw_rows[i] * row_bytes, row_bytes);
    SampleArgs draws = args.draws;
    draws.logits = copies.get();
    draw(draws, static_cast<bool*>(finite.get()));
  }

 private:
  // Changes x in place, unless `number` is the one that changes nothing.
  void map(void* x, int64_t rows, int64_t size, Map map, float number, float neutral) const {
    if (number != neutral) kernels_.map({x, x, rows, size, map, number, {}, m_.heads.dtype});
  }

  const Kernels& kernels_;
  const Model& m_;
  const Buffer residual_, x_;
};

}  // namespace minillm::cpu
