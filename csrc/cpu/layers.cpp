// All layers of a decoder in one call: minillm/model/decoder.py's loop, step for step.
//
//    x -> qkv -> (q, k norm) -> rope, cache -> attention -> o -> add, norm -> gate_up -> silu -> down -> add, norm
//
// It computes nothing itself: every line is the kernel that the op of the same name runs, on buffers that
// are rounded to the storage type at the same places, so the bits are those of the loop in Python (a test
// compares them). What it saves is the way in and out, ten times a layer: with 30 layers that costs as
// much as a fifth of the weights.
//
// Who wants logits needs each sequence's last row alone. Behind the last layer's attention, where rows no longer
// meet, the others are dropped: of a long prompt a 30-layer model then computes 3 % less.

#include <cstring>
#include <vector>

#include "buffer.h"

namespace minillm {
namespace {

class Layers {
 public:
  Layers(const Kernels& kernels, const LayersArgs& args)
      : kernels_(kernels),
        a_(args),
        dim_(args.heads.head_dim),
        q_size_(args.heads.num_heads * dim_),
        kv_size_(args.heads.num_kv_heads * dim_),
        qkv_size_(q_size_ + 2 * kv_size_),
        batch_(args.batch),
        rows_(args.batch.num_tokens),
        width_(args.heads.dtype == DType::f32 ? 4 : 2),
        qkv_(rows_, qkv_size_, width_),
        attended_(rows_, q_size_, width_),
        added_(rows_, args.hidden, width_),
        gate_up_(rows_, 2 * args.intermediate, width_),
        gated_(rows_, args.intermediate, width_) {}

  void run() {
    for (int64_t i = 0; i < a_.num_layers; i++) {
      const LayerWeights& layer = a_.layers[i];
      linear(a_.x, layer.qkv, layer.qkv_bias, qkv_.get(), qkv_size_, a_.hidden, layer.o);
      attend(layer, a_.last_only && i + 1 == a_.num_layers);
      linear(attended_.get(), layer.o, layer.o_bias, added_.get(), a_.hidden, q_size_, layer.gate_up);
      add_norm(layer.post_norm);
      linear(a_.x, layer.gate_up, layer.gate_up_bias, gate_up_.get(), 2 * a_.intermediate, a_.hidden,
             layer.down);
      kernels_.silu_mul({gate_up_.get(), gated_.get(), rows_, a_.intermediate, a_.heads.dtype});
      linear(gated_.get(), layer.down, layer.down_bias, added_.get(), a_.hidden, a_.intermediate,
             i + 1 < a_.num_layers ? a_.layers[i + 1].qkv : Matrix{});
      add_norm(layer.next_norm);
    }
  }

 private:
  void* column(int64_t first) const { return static_cast<char*>(qkv_.get()) + first * width_; }

  void linear(const void* x, Matrix w, const void* bias, void* y, int64_t out, int64_t in, Matrix then) const {
    kernels_.linear({x, in, w.packed, bias, y, rows_, out, in, a_.heads.dtype, w.dtype, then.packed});
  }

  // a_.x = norm(added + residual), the sum becoming the residual.
  void add_norm(const void* weight) const {
    kernels_.norm({added_.get(), a_.residual, weight, a_.residual, a_.x, rows_, 1, a_.hidden, a_.hidden, a_.hidden,
                   a_.eps, a_.heads.dtype});
  }

  void head_norm(void* x, const void* weight, int64_t heads) const {
    if (!weight) return;
    kernels_.norm({x, nullptr, weight, nullptr, x, rows_, heads, dim_, qkv_size_, qkv_size_, a_.eps, a_.heads.dtype});
  }

  // Their keys and values are in the cache, so the queries and running sums of the other rows can go. A last row
  // stands no earlier than its sequence: nothing is overwritten that is still to be moved.
  void keep_last_rows() {
    if (rows_ == batch_.num_seqs) return;
    starts_.push_back(0);
    for (int64_t s = 0; s < batch_.num_seqs; s++) {
      int64_t last = batch_.query_start[s + 1] - 1;
      move_row(qkv_.get(), last, s, qkv_size_, q_size_);
      move_row(a_.residual, last, s, a_.hidden, a_.hidden);
      starts_.push_back(static_cast<int32_t>(s + 1));
    }
    batch_.query_start = starts_.data();
    batch_.num_tokens = rows_ = batch_.num_seqs;
  }

  void move_row(void* rows, int64_t from, int64_t to, int64_t stride, int64_t size) const {
    char* base = static_cast<char*>(rows);
    memmove(base + to * stride * width_, base + from * stride * width_, size * width_);
  }

  void attend(const LayerWeights& layer, bool last_rows) {
    void *q = column(0), *k = column(q_size_), *v = column(q_size_ + kv_size_);
    head_norm(q, layer.q_norm, a_.heads.num_heads);
    head_norm(k, layer.k_norm, a_.heads.num_kv_heads);
    kernels_.rope_and_cache({q, k, v, qkv_size_, qkv_size_, qkv_size_, a_.cos, a_.sin, layer.k_cache, layer.v_cache, q,
                             qkv_size_, batch_, a_.heads});
    if (last_rows) keep_last_rows();
    kernels_.attention({q, qkv_size_, layer.k_cache, layer.v_cache, attended_.get(), batch_, a_.heads, a_.scale,
                        layer.window});
  }

  const Kernels& kernels_;
  const LayersArgs& a_;
  const int64_t dim_, q_size_, kv_size_, qkv_size_;
  Batch batch_;  // of the rows that are still there
  int64_t rows_;
  const int64_t width_;
  std::vector<int32_t> starts_;
  const Buffer qkv_, attended_, added_, gate_up_, gated_;
};

}  // namespace

void run_layers(const Kernels& kernels, const LayersArgs& args) {
  if (!args.batch.num_tokens) return;
  Layers layers(kernels, args);
  with_team([](void* context) { static_cast<Layers*>(context)->run(); }, &layers);
}

}  // namespace minillm
