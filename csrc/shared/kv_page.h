// A page of a KV cache in 8 bits: where the codes and the scales of its tokens lie. Each block of K, and of V, is one page.
//
//     page of a block    | head 0: codes, scales | head 1: codes, scales | ...
//
//     K on a CPU    codes [head_dim][block_size]     one dim of 16 keys is one load, so scores need no transposition
//     K on a GPU    codes [block_size][head_dim]     lanes side by side write, and read, one row (cuda/common/kv_codes.h)
//     V             codes [block_size][head_dim]     16 dims of one value are one load
//     scales        float [block_size]               one for each token: number = code * scale
//
// int8: scale = max |x| / 127 of a token's numbers in one head, code = x / scale rounded to nearest, ties to even. fp8:
// scale = max |x| / 448, code = x / scale in e4m3, rounded likewise. So the bytes of a token depend on that token alone
// (contract C2): no other token is rescaled when it comes or goes. All zeros give the scale 0. A row with NaN or
// infinity gets the scale NaN, and so is NaN to whoever reads it. The same layout in Python: minillm/ops/kv_codes.py.

#pragma once

#include <cstdint>

namespace minillm {

constexpr int64_t kScaleBytes = 4;

struct KvPage {
  int64_t heads, block_size, dim;

  constexpr int64_t head_bytes() const { return block_size * (dim + kScaleBytes); }
  constexpr int64_t head(int64_t block, int64_t head) const { return (block * heads + head) * head_bytes(); }
  // Of token `inside` of a block: its scale, and the first of its codes, in K on a CPU and else.
  constexpr int64_t scale(int64_t inside) const { return block_size * dim + inside * kScaleBytes; }
  constexpr int64_t column(int64_t inside) const { return inside; }
  constexpr int64_t row(int64_t inside) const { return inside * dim; }
};

}  // namespace minillm
