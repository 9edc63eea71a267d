// Several decode steps without coming back: what a draft model does between two passes of its target.
//
//     level 0    the given rows, several a sequence -> layers -> last row -> head -> draw
//     level 1    one row each: the token just drawn, at the next position    -> head -> draw
//     level 2    ...                                sequences that want no more drop out at the end
//
// It computes nothing itself: each level is the kernels that `embedding`, `rms_norm`, `layers`, `linear` and
// `sample` run, on the same rounded numbers, so the tokens are those of the loop in Python (a test compares
// them). What it saves is that loop: for a model that lies in the caches it costs more than the model.

#include <cstring>
#include <vector>

#include "buffer.h"

namespace minillm {
namespace {

class Ahead {
 public:
  Ahead(const Kernels& kernels, const AheadArgs& args)
      : kernels_(kernels),
        a_(args),
        width_(width_of(args.dtype)),
        residual_(args.layers.batch.num_tokens, args.layers.hidden, width_),
        x_(args.layers.batch.num_tokens, args.layers.hidden, width_),
        logits_(args.layers.batch.num_seqs, args.vocab, width_) {}

  void run() {
    const Batch& first = a_.layers.batch;
    int64_t count = first.num_seqs;
    std::vector<int64_t> drawn(count), positions(count), slots(count), no_seen(count);
    std::vector<int32_t> starts(count + 1), lengths(count);
    for (int64_t s = 0; s <= count; s++) starts[s] = static_cast<int32_t>(s);
    forward(first, a_.ids);
    gather_last(first);
    for (int64_t level = 0, alive; (alive = count_alive(level)); level++) {
      if (level) {
        for (int64_t s = 0; s < alive; s++) {
          positions[s] = first.kv_len[s] + level - 1;
          slots[s] = slot_of(first, s, positions[s]);
          lengths[s] = static_cast<int32_t>(positions[s] + 1);
        }
        forward({positions.data(), slots.data(), first.block_table, first.table_stride, starts.data(), lengths.data(),
                 alive, alive},
                drawn.data());
      }
      draw(level, alive, no_seen.data(), drawn.data());
      for (int64_t s = 0; s < alive; s++) a_.tokens[s * a_.count + level] = drawn[s];
    }
  }

 private:
  // Sequences, of which the first have the most to draw, that draw at this level.
  int64_t count_alive(int64_t level) const {
    int64_t alive = 0;
    while (alive < a_.layers.batch.num_seqs && a_.depths[alive] > level) alive++;
    return alive;
  }

  int64_t slot_of(const Batch& batch, int64_t sequence, int64_t position) const {
    int64_t size = a_.layers.heads.block_size;
    return batch.block_table[sequence * batch.table_stride + position / size] * size + position % size;
  }

  // The last hidden state of each row of the batch, into x_.
  void forward(const Batch& batch, const int64_t* ids) {
    int64_t rows = batch.num_tokens, hidden = a_.layers.hidden;
    kernels_.embedding({ids, rows, a_.embedding.packed, hidden, residual_.get(), a_.dtype, a_.embedding.dtype});
    kernels_.norm({residual_.get(), nullptr, a_.first_norm, nullptr, x_.get(), rows, 1, hidden, hidden, hidden,
                   a_.layers.eps, a_.dtype});
    LayersArgs layers = a_.layers;
    layers.batch = batch;
    layers.residual = residual_.get();
    layers.x = x_.get();
    run_layers(kernels_, layers);
  }

  // Of each sequence its last row alone; who comes first has its place no later than its row, so nothing is lost.
  void gather_last(const Batch& batch) {
    int64_t size = a_.layers.hidden * width_;
    for (int64_t s = 0; s < batch.num_seqs; s++) {
      char *x = static_cast<char*>(x_.get()), *from = x + (batch.query_start[s + 1] - 1) * size;
      memmove(x + s * size, from, size);
    }
  }

  void draw(int64_t level, int64_t alive, const int64_t* no_seen, int64_t* drawn) {
    kernels_.linear({x_.get(), a_.layers.hidden, a_.head.packed, nullptr, logits_.get(), alive, a_.vocab,
                     a_.layers.hidden, a_.dtype, a_.head.dtype, nullptr});
    sample(kernels_, {logits_.get(), a_.dtype, alive, a_.vocab, a_.num_token_ids,
                      a_.keys + level * a_.layers.batch.num_seqs, a_.numbers, a_.top_k, nullptr, no_seen, drawn});
  }

  const Kernels& kernels_;
  const AheadArgs& a_;
  const int64_t width_;
  const Buffer residual_, x_, logits_;
};

}  // namespace

void decode_ahead(const Kernels& kernels, const AheadArgs& args) {
  if (!args.layers.batch.num_seqs) return;
  Ahead ahead(kernels, args);
  with_team([](void* context) { static_cast<Ahead*>(context)->run(); }, &ahead);
}

}  // namespace minillm
