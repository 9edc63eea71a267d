// Passes over a whole model: one pass, one pass with sampling, and several decode steps in one call. A draft model
// uses the last one between two passes of its target.
//
//     level 0    the given rows, several per sequence -> layers -> last row -> head -> sample
//     level 1    one row per sequence: the token just sampled, at the next position -> head -> sample
//     level 2    ...                    a sequence that has reached its depth is left out; these are the last ones
//
// Each level is a pass (pass.h) and a draw, so the tokens equal those of the same loop in Python (a test compares
// them). The call saves the Python loop, which costs more than the model itself if the model fits in the caches.

#include <vector>

#include "pass.h"

namespace minillm::cpu {
namespace {

class Ahead {
 public:
  Ahead(const Kernels& kernels, const Model& model, const AheadArgs& args, int64_t* tokens)
      : m_(model),
        a_(args),
        tokens_(tokens),
        first_(args.first.batch),
        pass_(kernels, model, first_.num_tokens),
        logits_(first_.num_seqs, model.vocab, width_of(model.heads.dtype)),
        finite_(first_.num_seqs, 1, sizeof(bool)) {}

  void run() {
    int64_t count = first_.num_seqs;
    std::vector<int64_t> drawn(count), positions(count), slots(count), no_seen(count);
    std::vector<int32_t> starts(count + 1), lengths(count);
    for (int64_t s = 0; s <= count; s++) starts[s] = static_cast<int32_t>(s);
    pass_.logits(a_.first, logits_.get());
    for (int64_t level = 0, alive; (alive = count_alive(level)); level++) {
      if (level) {
        for (int64_t s = 0; s < alive; s++) {
          int64_t place = first_.kv_len[s] + level - 1;
          positions[s] = first_.positions[first_.query_start[s + 1] - 1] + level;
          slots[s] = slot_of(s, place);
          lengths[s] = static_cast<int32_t>(place + 1);
        }
        Batch batch = {positions.data(), slots.data(), first_.block_table, first_.table_stride,
                       starts.data(),    lengths.data(), alive,            alive};
        pass_.logits({batch, drawn.data()}, logits_.get());
      }
      draw(level, alive, no_seen.data(), drawn.data());
      for (int64_t s = 0; s < alive; s++) tokens_[s * a_.count + level] = drawn[s];
    }
  }

 private:
  // The number of sequences that draw at this level. Depths fall, so these are the first ones.
  int64_t count_alive(int64_t level) const {
    int64_t alive = 0;
    while (alive < first_.num_seqs && a_.depths[alive] > level) alive++;
    return alive;
  }

  // The slot of a sequence's token number `place`.
  int64_t slot_of(int64_t sequence, int64_t place) const {
    int64_t size = m_.heads.block_size;
    return first_.block_table[sequence * first_.table_stride + place / size] * size + place % size;
  }

  void draw(int64_t level, int64_t alive, const int64_t* no_seen, int64_t* drawn) {
    pass_.draw({logits_.get(), m_.heads.dtype, alive, m_.vocab, a_.num_token_ids, a_.keys + level * first_.num_seqs,
                a_.numbers, a_.top_k, nullptr, no_seen, nullptr, drawn},
               static_cast<bool*>(finite_.get()));
  }

  const Model& m_;
  const AheadArgs& a_;
  int64_t* const tokens_;
  const Batch& first_;
  const Pass pass_;
  const Buffer logits_, finite_;
};

template <class Body>
void in_one_region(const Body& body) {
  parallel_region([](void* context) { (*static_cast<const Body*>(context))(); }, const_cast<Body*>(&body));
}

}  // namespace

void hidden_states(const Kernels& kernels, const Model& model, const PassArgs& args, void* x) {
  if (!args.batch.num_tokens) return;
  Pass pass(kernels, model, args.batch.num_tokens);
  in_one_region([&] { pass.hidden(args, x, false); });
}

void last_logits(const Kernels& kernels, const Model& model, const PassArgs& args, void* logits) {
  if (!args.batch.num_seqs) return;
  Pass pass(kernels, model, args.batch.num_tokens);
  in_one_region([&] { pass.logits(args, logits); });
}

void step(const Kernels& kernels, const Model& model, const StepArgs& args) {
  const Batch& batch = args.pass.batch;
  if (!batch.num_tokens) return;
  Pass pass(kernels, model, batch.num_tokens);
  in_one_region([&] {
    pass.logits(args.pass, args.logits, args.all_rows);
    SampleArgs draws = args.draws;
    draws.logits = args.logits;
    if (!args.draw_rows) return pass.draw(draws, args.finite);
    finite_rows({args.logits, draws.dtype, args.all_rows ? batch.num_tokens : batch.num_seqs, draws.vocab, args.finite});
    pass.draw_from(args);
  });
}

void decode_ahead(const Kernels& kernels, const Model& model, const AheadArgs& args, int64_t* tokens) {
  if (!args.first.batch.num_seqs) return;
  Ahead ahead(kernels, model, args, tokens);
  in_one_region([&] { ahead.run(); });
}

}  // namespace minillm::cpu
