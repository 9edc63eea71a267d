// Attention that reads values in the cache where they are: the tasks, the tiles and the softmax of attention.h.
//
// With few query rows, packing a tile takes two thirds of the time: it writes and reads as many numbers as the sums
// need, for one use. Values need no packing, since 16 dims of a key are neighbours. Keys do, because a register of scores
// is several keys: they are transposed, and widened on the way.
//
//     S[r][key] += q[r][d] * K[key][d]     d = 0, 1, 2, ...       from the transposed tile
//     O[r][d]   += P[r][key] * V[key][d]   key = 0, 1, 2, ...     from the cache
//
// These are the sums of attention.h, in the same order, so a row has the same bits here and there (contract C2).
//
// A task of few rows has all heads, and takes a tile head after head. So memory is read in one long run:
//
//     slot     | head 0 | head 1 | head 2 |     head after head, tile after tile, and not all tiles of head 0 first
//     slot     | head 0 | head 1 | head 2 |
//
// bf16 is read in pairs, so the dims of the output are out of order until the task ends:
//
//     memory         d0 d1 d2 d3 d4 d5 ...
//     registers      d0 d2 d4 ... | d1 d3 d5 ...               widened by shifts
//     AVX-512        d0 d1 d2 d3 d8 ... | d4 d5 d6 d7 d12 ...  two keys interleaved, in each 128 bits
//
// Bytes: K and V of the visible keys, once a task. Limit: in decode memory and the multiplications, about equally.

#pragma once

#include "attention.h"

namespace minillm::cpu {
namespace {

// How a cache of T is multiplied with many rows (packed) and with few.
template <class T> struct Products {
  using Packed = Singles<float>;
  using InPlace = Singles<float>;
};
template <> struct Products<bf16> {
  using Packed = PairsBf16;
#if defined(MINILLM_ISA_AVX512)
  using InPlace = PairsBf16;
#else
  using InPlace = Singles<float>;
#endif
};
template <class T> using InPlace = typename Products<T>::InPlace;
template <class T> using InPlaceX = typename InPlace<T>::X;

// Rows of a head up to which values stay where they are, and up to which a task has all heads. Many rows share the
// packing. With AVX2 it still gains nothing (192 rows: bf16 is 25 % faster in place, fp16 and fp32 5 %). The generic
// path converts slowly, so there it does; and with AVX-512 packed tiles have more rows (not measured).
constexpr int64_t kValuesInPlace = VL == 8 ? kTaskRows : 2 * kSumRows, kJoinRows = smaller(48, kValuesInPlace);

// Rows are whole registers, also as pairs.
inline bool fits_in_place(const Heads& heads) { return heads.head_dim % 32 == 0; }

// ---- register tiles ----------------------------------------------------------------------------

// Register p of the values of key i (with pairs, of i and i + 1).
template <class T>
INLINE vf values_at(TileRows<T> rows, int64_t i, int p) { return load(rows[i] + p * VL); }

#if defined(MINILLM_ISA_AVX512)
INLINE PairsBf16::Reg values_at(TileRows<bf16> rows, int64_t i, int p) {
  __m512i a = load_as<__m512i>(rows[i] + p / 2 * 32), b = load_as<__m512i>(rows[i + 1] + p / 2 * 32);
  return (PairsBf16::Reg)(p % 2 ? _mm512_unpackhi_epi16(a, b) : _mm512_unpacklo_epi16(a, b));
}
constexpr int dim_at(int place) { return place % 16 / 4 * 8 + place / 16 * 4 + place % 4; }
#else
INLINE vf values_at(TileRows<bf16> rows, int64_t i, int p) {
  const bf16* pairs = rows[i] + p / 2 * 2 * VL;
  asm volatile("" : "+r"(pairs));  // read again for the odd dims: accumulators need the registers
  vu both = load_as<vu>(pairs);
  if (p % 2 == 0) return (vf)(both << 16);
#if defined(MINILLM_ISA_AVX2)
  return (vf)_mm256_slli_epi32(_mm256_srli_epi32((__m256i)both, 16), 16);  // a mask would be one register more
#else
  return (vf)(both & 0xffff0000u);
#endif
}
constexpr int dim_at(int place) { return place % VL * 2 + place / VL; }
#endif

// scores[r][16 g ...] = q[r] . keys of group g, for R rows and G groups of 16 transposed keys.
template <class M, int R, int G>
void score_keys(const typename M::X* q, int64_t dim, const typename M::W* keys, float* scores) {
  constexpr int P = G * kParts;
  vf acc[R][P] = {};
  for (int64_t d = 0; d < dim; d += M::kStep)
    add_products<M, R, P>(acc, q + d, dim, [&](int p) {
      return M::weights(keys + p / kParts * 16 * dim + d * 16 + p % kParts * VL * M::kStep);
    });
  store_sums<R, P>(acc, scores, kKeyTile);
}

// out[r][16 g ...] += weights[r] . values, for R rows and 16 G dims.
template <class T, int R, int G>
void sum_values(const InPlaceX<T>* weights, TileRows<T> rows, float* out, int64_t width) {
  constexpr int P = G * kParts;
  vf acc[R][P];
  load_sums<R, P>(acc, out, width);
  for (int64_t i = 0; i < kKeyTile; i += InPlace<T>::kStep)
    add_products<InPlace<T>, R, P>(acc, weights + i, kKeyTile, [&](int p) { return values_at(rows, i, p); });
  store_sums<R, P>(acc, out, width);
}

template <class T, int R>
void score_rows_in_place(const InPlaceX<T>* q, int64_t dim, const typename InPlace<T>::W* keys, float* scores) {
  constexpr int G = groups_for(R);
  for (int64_t g = 0; g < kKeyTile / 16; g += G)
    score_keys<InPlace<T>, R, G>(q, dim, keys + g * 16 * dim, scores + g * 16);
}

template <class T, int R>
void value_rows_in_place(const InPlaceX<T>* weights, TileRows<T> rows, int64_t dim, float* out, int64_t width) {
  constexpr int G = groups_for(R);
  for (; dim >= G * 16; dim -= G * 16, rows.offset += G * 16, out += G * 16)
    sum_values<T, R, G>(weights, rows, out, width);
  if constexpr (G > 2)
    if (dim) sum_values<T, R, 2>(weights, rows, out, width);
}

// The functions for 1 to 6 rows.
template <class T>
struct InPlaceTile {
  void (*scores)(const InPlaceX<T>*, int64_t, const typename InPlace<T>::W*, float*);
  void (*values)(const InPlaceX<T>*, TileRows<T>, int64_t, float*, int64_t);
};
template <class T>
constexpr InPlaceTile<T> kInPlaceTiles[] = {
    {score_rows_in_place<T, 1>, value_rows_in_place<T, 1>}, {score_rows_in_place<T, 2>, value_rows_in_place<T, 2>},
    {score_rows_in_place<T, 3>, value_rows_in_place<T, 3>},
#if defined(MINILLM_ISA_AVX512) || defined(MINILLM_ISA_AVX2)
    {score_rows_in_place<T, 4>, value_rows_in_place<T, 4>}, {score_rows_in_place<T, 5>, value_rows_in_place<T, 5>},
    {score_rows_in_place<T, 6>, value_rows_in_place<T, 6>},
#endif
};

// Puts the dims of one row of output in order.
template <class T>
void order_dims(float*, int64_t) {}
template <>
void order_dims<bf16>(float* row, int64_t dim) {
  for (float* end = row + dim; row < end; row += 2 * VL) {
    float ordered[2 * VL];
    for (int i = 0; i < 2 * VL; i++) ordered[dim_at(i)] = row[i];
    memcpy(row, ordered, sizeof(ordered));
  }
}

// ---- tasks -------------------------------------------------------------------------------------

template <class T>
struct InPlaceWorkspace : TaskRows<InPlaceX<T>> {
  Scratch<typename InPlace<T>::W> keys;
  Scratch<T> zeros;

  InPlaceWorkspace(int64_t rows, int64_t dim, int64_t slot_size)
      : TaskRows<InPlaceX<T>>(rows, dim), keys(kKeyTile * dim), zeros(slot_size + VL) {
    memset(zeros.data, 0, (slot_size + VL) * sizeof(T));
  }
};

// One head's part of a tile: its values, those that it reads next, and its first row in the workspace.
template <class T>
struct HeadTile {
  TileRows<T> values, next;
  int64_t base, first_row;
};

// Prefetches part `i` of `parts` of the next values. A core can have only a few loads in flight, so this is done
// between the rows.
template <class T>
INLINE void prefetch_part(TileRows<T> next, int64_t dim, int64_t i, int64_t parts) {
  for (int64_t key = kKeyTile * i / parts; key < kKeyTile * (i + 1) / parts; key++) prefetch(next[key], dim);
}

// One step of the online softmax, as attend_tile in attention.h, for rows [row, row + count) of a head.
template <class T>
void attend_in_place_rows(const AttentionArgs& a, InPlaceWorkspace<T>& s, const Span& span, const HeadTile<T>& tile,
                          int64_t row, int64_t count) {
  int64_t dim = a.heads.head_dim, group = a.heads.num_heads / a.heads.num_kv_heads, r = tile.first_row + row;
  const InPlaceTile<T>& fn = kInPlaceTiles<T>[count - 1];
  float *out = s.out.data + r * s.width, scale = a.softcap ? 1 : a.scale;
  fn.scores(s.q.data + r * dim, dim, s.keys.data, s.scores.data);
  for (int64_t i = 0; i < count; i++) {
    if (row == 0) prefetch_part(tile.next, dim, i, count);
    float* scores = s.scores.data + i * kKeyTile;
    Visible keys(a, span.first_pos + (row + i) / group, tile.base);
    if (a.softcap) cap_scores(scores, a.scale, a.softcap);
    float correction = softmax_step<typename Products<T>::Packed::X>(
        scores, s.p.data + i * kKeyTile, keys.begin, keys.end, scale, s.m.data[r + i], s.l.data[r + i]);
    rescale(out + i * s.width, s.width, correction);
  }
  fn.values(s.p.data, tile.values, dim, out, s.width);
}

// The next tile of a head is prefetched while this one is used. `next_task` and `tile` are as in attend_task.
template <class T>
void attend_in_place(const AttentionArgs& a, InPlaceWorkspace<T>& s, const Task& task, const Task* next_task,
                     TileSlots<T>& tile) {
  int64_t dim = a.heads.head_dim, rows = rows_of_head(a, task);
  Span span(a, task);
  begin_rows<T>(a, s, task, span);
  for (int64_t base = span.begin; base < span.end; base += kKeyTile) {
    TileSlots<T> now = tile;
    bool ends = base + kKeyTile >= span.end;
    if (!ends) {
      tile = TileSlots<T>(a, task.seq, base + kKeyTile, span.end - base - kKeyTile, s.zeros.data);
    } else if (next_task) {
      tile = first_tile(a, *next_task, s.zeros.data);
    }
    const Task& after = ends && next_task ? *next_task : task;
    for (int64_t h = 0; h < task.heads; h++) {
      int64_t offset = (task.kv_head + h) * dim, next = (after.kv_head + smaller(h, after.heads - 1)) * dim;
      turn_keys(TileRows<T>{now.k, offset}, TileRows<T>{tile.k, next}, dim, s.keys.data);
      HeadTile<T> head = {{now.v, offset}, {tile.v, next}, base, h * rows};
      for (int64_t r = 0; r < rows; r += kSumRows)
        attend_in_place_rows(a, s, span, head, r, smaller(kSumRows, rows - r));
    }
  }
  for (int64_t r = 0; r < task.heads * rows; r++) order_dims<T>(s.out.data + r * s.width, dim);
  end_rows<T>(a, s, task, span);
}

template <class T>
void attend_tasks(const AttentionArgs& a, const TaskList& list) {
  using M = typename Products<T>::Packed;
  int64_t dim = a.heads.head_dim, slot_size = a.heads.num_kv_heads * dim;
  parallel_tasks(list.total, [&](TaskQueue& tasks) {
    InPlaceWorkspace<T> in_place(fits_in_place(a.heads) ? list.most_rows : 0, dim, slot_size);
    Workspace<M, T> packed(list.most_rows, dim, slot_size);
    Task task = list.at(tasks.now), next;
    TileSlots<T> tile = first_tile(a, task, packed.zeros.data);
    for (; tasks.left(); tasks.advance(), task = next) {
      if (!tasks.last()) next = list.at(tasks.next);
      const Task* after = tasks.last() ? nullptr : &next;
      if (fits_in_place(a.heads) && rows_of_head(a, task) <= kValuesInPlace) {
        attend_in_place(a, in_place, task, after, tile);
      } else {
        attend_task(a, packed, task, after, tile);
      }
    }
  });
}

}  // namespace
}  // namespace minillm::cpu
