// Paged attention over a cache in int8: the tasks, the tiles and the softmax of attention.h, on codes.
//
//     S = q K^T scale:   score  = (q . codes) * scale_k[key] * scale       the key's scale is folded into its score,
//     O += P V:          output += (weight * scale_v[key]) * codes         the value's into its weight
//
// Codes become floats in registers, 16 at a time: keys are stored with 16 tokens side by side and values with 16 dims,
// so nothing is transposed, packed or written. If pages are not made of whole groups of 16, the codes of a tile (not
// their numbers) are first copied into that shape.
//
//     page of K, block_size 32, dim d        | t0 t1 ... t15 | t16 ... t31 |       a group of 16 keys: one register of
//     page of V, token t                     | d0 d1 ... d15 | d16 ...     |       codes for each dim, 16 dims likewise
//
// Contract C2: each score and each output has one accumulator, over dims and over keys from first to last. Keys that a
// row does not see get the weight 0 and their scales are not used: whatever their slots hold, even NaN, adds 0.
//
// Bytes: (head_dim + 4) a key and a value, once per task, where bf16 has 2 head_dim. Arithmetic is fp32, also where
// the model is bf16. Limit: with one query row, converting the codes; with many, the multiplications.

#pragma once

#include "attention_in_place.h"
#include "int8_tile.h"
#include "kv_page.h"

namespace minillm::cpu {
namespace {

template <class T>
struct Int8Workspace : TaskRows<float> {
  bool direct_k, direct_v;  // codes are read where they are
  int64_t k_stride, v_stride;
  Scratch<int8_t> zeros, keys, values;

  Int8Workspace(int64_t rows, const Heads& heads)
      : TaskRows<float>(rows, heads.head_dim),
        direct_k(heads.block_size % kGroup == 0),
        direct_v(direct_k && heads.head_dim % kGroup == 0),
        k_stride(direct_k ? heads.block_size : kGroup),
        v_stride(direct_v ? heads.head_dim : width),
        zeros(zero_bytes(heads)),
        keys(direct_k ? 0 : kGroups * heads.head_dim * kGroup),
        values(direct_v ? 0 : kKeyTile * width) {
    memset(zeros.data, 0, zero_bytes(heads));
    if (!direct_v) memset(values.data, 0, kKeyTile * width);
  }
  int64_t zero_bytes(const Heads& heads) const { return larger(heads.head_dim * k_stride, kGroup * v_stride); }
};

// Reads the pages of one kv head of one sequence.
struct Int8Pages {
  KvPage page;
  const char *k, *v;
  const int32_t* table;

  Int8Pages(const AttentionArgs& a, const Task& task)
      : page{a.heads.num_kv_heads, a.heads.block_size, a.heads.head_dim},
        k(static_cast<const char*>(a.k_cache) + page.head(0, task.kv_head)),
        v(static_cast<const char*>(a.v_cache) + page.head(0, task.kv_head)),
        table(a.batch.block_table + task.seq * a.batch.table_stride) {}

  int64_t offset(int64_t key) const { return page.head(table[key / page.block_size], 0); }
  const int8_t* codes(const char* of, int64_t key, int64_t inside) const {
    return reinterpret_cast<const int8_t*>(of + offset(key) + inside);
  }
  void scales(const char* of, int64_t key, int64_t count, float* to) const {
    memcpy(to, of + offset(key) + page.scale(key % page.block_size), count * kScaleBytes);
  }
};

// Copies the codes of a key and of its value into the groups of a tile.
template <class T>
void copy_codes(const Int8Pages& pages, Int8Workspace<T>& s, int64_t key, int64_t at) {
  int64_t inside = key % pages.page.block_size, dim = pages.page.dim;
  if (!s.direct_k) {
    const int8_t* from = pages.codes(pages.k, key, pages.page.column(inside));
    int8_t* to = s.keys.data + at / kGroup * dim * kGroup + at % kGroup;
    for (int64_t d = 0; d < dim; d++) to[d * kGroup] = from[d * pages.page.block_size];
  }
  if (!s.direct_v) memcpy(s.values.data + at * s.width, pages.codes(pages.v, key, pages.page.row(inside)), dim);
}

// Finds the codes of the `count` keys that begin at key `base`; reads none of them.
template <class T>
void find_tile(const Int8Pages& pages, const Int8Workspace<T>& s, int64_t base, int64_t count, Int8Tile& tile) {
  for (int g = 0; g < kGroups; g++) {
    tile.k[g] = tile.v[g] = s.zeros.data;
    if (g * kGroup >= count) continue;
    int64_t key = base + g * kGroup, inside = key % pages.page.block_size;
    tile.k[g] = s.direct_k ? pages.codes(pages.k, key, pages.page.column(inside)) : s.keys.data + g * pages.page.dim * kGroup;
    tile.v[g] = s.direct_v ? pages.codes(pages.v, key, pages.page.row(inside)) : s.values.data + g * kGroup * s.width;
  }
}

// Reads the scales of these keys, and copies the codes that cannot be read where they are.
template <class T>
void read_tile(const Int8Pages& pages, Int8Workspace<T>& s, int64_t base, int64_t count, Int8Tile& tile) {
  int64_t step = s.direct_k ? kGroup : 1;
  for (int64_t i = 0; i < smaller(count, kKeyTile); i += step) {
    pages.scales(pages.k, base + i, step, tile.k_scale + i);
    pages.scales(pages.v, base + i, step, tile.v_scale + i);
  }
  if (!s.direct_v)
    for (int64_t i = 0; i < smaller(count, kKeyTile); i++) copy_codes(pages, s, base + i, i);
}

// Multiplies the weights of the visible keys by the scales of their values.
INLINE void weigh_values(float* weights, const float* scales, const Visible& keys) {
  vi lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  bool sees_all = keys.begin <= 0 && keys.end >= kKeyTile;
  for (int p = 0; p < kKeyTile; p += VL) {
    vi key = lane + p;
    vf weight = load(weights + p) * load(scales + p);
    if (!sees_all) weight = ((key >= (int)keys.begin) & (key < (int)keys.end)) ? weight : vf{};
    store(weights + p, weight);
  }
}

// One step of the online softmax, as attend_tile in attention.h.
template <class T>
void attend_codes(const AttentionArgs& a, Int8Workspace<T>& s, const Span& span, const Int8Tile& tile, int64_t base,
                  int64_t r, int64_t count) {
  int64_t group = a.heads.num_heads / a.heads.num_kv_heads, width = s.width;
  const Int8Rows& fn = kRowsOfCodes[count - 1];
  fn.scores(s.q.data + r * a.heads.head_dim, a.heads.head_dim, tile, s.k_stride, s.scores.data);
  for (int64_t i = 0; i < count; i++) {
    float *scores = s.scores.data + i * kKeyTile, *weights = s.p.data + i * kKeyTile;
    Visible keys(a, span.first_pos + (r + i) / group, base);
    for (int p = 0; p < kKeyTile; p += VL) store(scores + p, load(scores + p) * load(tile.k_scale + p));
    if (a.softcap) cap_scores(scores, a.scale, a.softcap);
    float correction = softmax_step<float>(scores, weights, keys.begin, keys.end, a.softcap ? 1 : a.scale,
                                           s.m.data[r + i], s.l.data[r + i]);
    rescale(s.out.data + (r + i) * width, width, correction);
    weigh_values(weights, tile.v_scale, keys);
  }
  fn.values(s.p.data, tile, s.v_stride, s.out.data + r * width, width);
}

// Brings the tile that is read next into L2.
template <class T>
INLINE void prefetch_tile(const Int8Pages& pages, const Int8Workspace<T>& s, int64_t base, int64_t count,
                          const Int8Tile& tile) {
  int64_t dim = pages.page.dim, step = larger(1, 64 / s.k_stride);
  for (int g = 0; g * kGroup < smaller(count, kKeyTile); g++) {
    int64_t scale = pages.offset(base + g * kGroup) + pages.page.scale((base + g * kGroup) % pages.page.block_size);
    __builtin_prefetch(pages.k + scale, 0, 2);
    __builtin_prefetch(pages.v + scale, 0, 2);
    if (s.direct_k && (!g || s.k_stride < 64))
      for (int64_t d = 0; d < dim; d += step) __builtin_prefetch(tile.k[g] + d * s.k_stride, 0, 2);
    if (s.direct_v)
      for (int64_t byte = 0; byte < kGroup * dim; byte += 64) __builtin_prefetch(tile.v[g] + byte, 0, 2);
  }
}

template <class T>
void attend_int8(const AttentionArgs& a, Int8Workspace<T>& s, const Task& task) {
  int64_t rows = (task.last_token - task.first_token) * (a.heads.num_heads / a.heads.num_kv_heads);
  Span span(a, task);
  Int8Pages pages(a, task);
  begin_rows<T>(a, s, task, span);
  Int8Tile tile = {}, next;
  for (int64_t base = span.begin; base < span.end; base += kKeyTile) {
    int64_t count = span.end - base;
    find_tile(pages, s, base, count, tile);
    read_tile(pages, s, base, count, tile);
    find_tile(pages, s, base + kKeyTile, count - kKeyTile, next);
    prefetch_tile(pages, s, base + kKeyTile, count - kKeyTile, next);
    for (int64_t r = 0; r < rows; r += kSumRows)
      attend_codes(a, s, span, tile, base, r, smaller(kSumRows, rows - r));
  }
  // +0 for -0: keys that a row does not see add zeros of either sign.
  for (int64_t i = 0; i < rows * s.width; i += VL) store(s.out.data + i, load(s.out.data + i) + 0.0f);
  end_rows<T>(a, s, task, span);
}

template <class T>
void attend_int8_tasks(const AttentionArgs& a, const TaskList& list) {
  parallel_tasks(list.total, [&](TaskQueue& tasks) {
    Int8Workspace<T> workspace(list.most_rows, a.heads);
    for (; tasks.left(); tasks.advance()) attend_int8(a, workspace, list.at(tasks.now));
  });
}

void attention(const AttentionArgs& a) {
  bool int8 = a.heads.kv == KvCodes::int8;
  TaskList tasks(a, int8 || !fits_in_place(a.heads) ? 0 : kJoinRows);
  switch (a.heads.dtype) {
    case DType::f32: return int8 ? attend_int8_tasks<float>(a, tasks) : attend_tasks<float>(a, tasks);
    case DType::bf16: return int8 ? attend_int8_tasks<bf16>(a, tasks) : attend_tasks<bf16>(a, tasks);
    case DType::f16: return int8 ? attend_int8_tasks<fp16>(a, tasks) : attend_tasks<fp16>(a, tasks);
  }
}

}  // namespace
}  // namespace minillm::cpu
