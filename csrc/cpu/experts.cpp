// A mixture of experts: each row goes through a few gated MLPs, and their outputs are added up.
//
//     choices   row 0: 1 3 | row 1: 0 3 | row 2: 1 2           rows that share an expert lie side by side, so that its
//     sorted    0: row 1 | 1: rows 0 2 | 2: row 2 | 3: rows 0 1    matrices are read once
//
//     gather rows of x -> gate_up of the expert -> gate -> down of the expert -> outputs;  then combine
//
// An expert's matrix is a run of whole blocks in the packed matrix of all experts, so the product is the one of
// `linear`. Its bits do not depend on the number of rows, and the sum of a row goes over its experts in rising order:
// contract C2. The matrices of experts that no row has chosen are not read.
//
// Bytes: the matrices of the chosen experts, once per call. Limit: memory bandwidth, until an expert has many rows.
// Source: Shazeer et al., 1701.06538.

#include <cstring>
#include <vector>

#include "buffer.h"
#include "codes_layout.h"
#include "passes.h"

namespace minillm::cpu {
namespace {

// The matrix of one expert of `size` outputs inside the matrix of all experts.
Matrix slice(const Matrix& all, int64_t expert, int64_t size, int64_t in, DType dtype) {
  int64_t first = expert * expert_rows(size);
  int64_t block = all.form.codes == Codes::none ? packed_block_size(in, all.dtype) * width_of(all.dtype)
                                                : CodesLayout(all.form, in).block;
  const char* bias = static_cast<const char*>(all.bias);
  return {static_cast<const char*>(all.weight) + first / kPackLanes * block, all.dtype,
          bias ? bias + first * width_of(dtype) : nullptr, all.form};
}

class Mixture {
 public:
  Mixture(const Kernels& kernels, const ExpertsArgs& args)
      : kernels_(kernels),
        a_(args),
        choices_(args.rows * args.experts.per_token),
        starts_(args.experts.count + 1),
        order_(choices_),
        places_(choices_) {
    for (int64_t c = 0; c < choices_; c++) starts_[a_.chosen[c] + 1]++;
    for (int64_t e = 0; e < a_.experts.count; e++) {
      most_ = starts_[e + 1] > most_ ? starts_[e + 1] : most_;
      starts_[e + 1] += starts_[e];
    }
    std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
    for (int64_t c = 0; c < choices_; c++) {
      places_[c] = next[a_.chosen[c]]++;
      order_[places_[c]] = c;
    }
  }

  void run() const {
    int64_t width = width_of(a_.dtype), size = a_.experts.size;
    Buffer x(most_, a_.hidden, width), gate_up(most_, 2 * size, width), gated(most_, size, width);
    Buffer outputs(choices_, a_.hidden, width);
    for (int64_t e = 0; e < a_.experts.count; e++) {
      int64_t rows = starts_[e + 1] - starts_[e];
      if (!rows) continue;
      gather(e, static_cast<char*>(x.get()), a_.hidden * width);
      Matrix up = slice(a_.gate_up, e, 2 * size, a_.hidden, a_.dtype), down = slice(a_.down, e, a_.hidden, size, a_.dtype);
      linear(x.get(), up, gate_up.get(), rows, 2 * size, a_.hidden, down);
      kernels_.gate({gate_up.get(), gated.get(), rows, size, a_.activation, a_.dtype});
      linear(gated.get(), down, static_cast<char*>(outputs.get()) + starts_[e] * a_.hidden * width, rows, a_.hidden,
             size, following(e));
    }
    kernels_.combine({outputs.get(), places_.data(), a_.weights, a_.y, a_.rows, a_.experts.per_token, a_.hidden,
                      a_.dtype});
  }

 private:
  void gather(int64_t expert, char* to, int64_t bytes) const {
    for (int64_t i = starts_[expert]; i < starts_[expert + 1]; i++, to += bytes)
      memcpy(to, static_cast<const char*>(a_.x) + order_[i] / a_.experts.per_token * bytes, bytes);
  }

  void linear(const void* x, const Matrix& w, void* y, int64_t rows, int64_t out, int64_t in, const Matrix& next) const {
    kernels_.linear({x, in, w, y, rows, out, in, a_.dtype, next.weight});
  }

  // The matrix that is read after expert `e`, for prefetching.
  Matrix following(int64_t e) const {
    for (e++; e < a_.experts.count; e++)
      if (starts_[e + 1] > starts_[e]) return slice(a_.gate_up, e, 2 * a_.experts.size, a_.hidden, a_.dtype);
    return {};
  }

  const Kernels& kernels_;
  const ExpertsArgs& a_;
  const int64_t choices_;
  int64_t most_ = 0;             // rows of the expert that has the most
  std::vector<int64_t> starts_;  // [count + 1]: where each expert's rows begin in the sorted order
  std::vector<int64_t> order_;   // [choices]: the choice at each place of the sorted order
  std::vector<int64_t> places_;  // [choices]: the place of each choice
};

}  // namespace

void experts(const Kernels& kernels, const ExpertsArgs& args) {
  if (args.rows) Mixture(kernels, args).run();
}

}  // namespace minillm::cpu
