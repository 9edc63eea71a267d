// Writes keys and values to a cache in int8, one row of a head at a time. The layout of a page is in kv_page.h.
//
//     row of k (rotated) or v, [head_dim]  -->  max |x|  -->  scale = max / 127  -->  codes = round(x / scale)
//
// Bytes: head_dim + 4 written for 2 head_dim read. A key's codes go to head_dim places, `block_size` bytes apart; the
// tokens after it fill the same lines.

#pragma once

#include "kernels.h"
#include "kv_page.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

// Code i goes to codes[i * stride]. A row with NaN or infinity gets the scale NaN and codes of zero.
template <class T>
INLINE void quantize_row(const T* x, int64_t size, int8_t* codes, int64_t stride, char* scale_at) {
  vf highest = {}, zeros = {};
  for (int64_t i = 0; i < size; i += VL) {
    vf value = load_n(x + i, size - i);
    highest = vmax(highest, vabs(value));
    zeros = fma(value, vf{}, zeros);  // NaN if the value is NaN or infinite
  }
  bool finite = sum_lanes(zeros) == 0;
  float scale = finite ? max_lanes(highest) / 127.0f : __builtin_nanf("");
  memcpy(scale_at, &scale, sizeof(scale));
  for (int64_t i = 0; i < size; i += VL) {
    vi code = {};
    if (scale > 0) code = nearest(load_n(x + i, size - i) / scale);
    for (int64_t j = 0; j < smaller(VL, size - i); j++) codes[(i + j) * stride] = static_cast<int8_t>(code[j]);
  }
}

// The cache slot of one token: the same head of K and V.
struct Int8Slot {
  KvPage page;
  int64_t block, inside;

  Int8Slot(const Heads& heads, int64_t slot)
      : page{heads.num_kv_heads, heads.block_size, heads.head_dim},
        block(slot / heads.block_size),
        inside(slot % heads.block_size) {}

  template <class T>
  void put_key(void* cache, int64_t head, const T* k) const {
    char* at = static_cast<char*>(cache) + page.head(block, head);
    quantize_row(k, page.dim, reinterpret_cast<int8_t*>(at + page.column(inside)), page.block_size, at + page.scale(inside));
  }
  template <class T>
  void put_value(void* cache, int64_t head, const T* v) const {
    char* at = static_cast<char*>(cache) + page.head(block, head);
    quantize_row(v, page.dim, reinterpret_cast<int8_t*>(at + page.row(inside)), 1, at + page.scale(inside));
  }
};

}  // namespace
}  // namespace minillm::cpu
