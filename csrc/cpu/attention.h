// Paged attention: softmax(Q K^T scale) V over the pages of each sequence. At any time only 64 scores of a row
// are stored.
//
//   keys        | tile 0 (0..63) | tile 1 (64..127) | tile 2 ...        tiles begin at multiples of 64
//   row r       m, l, O  ------>   m, l, O  ------->   m, l, O          running maximum, sum, output
//
//   for each tile:  S = q K^T scale;  m' = max(m, S);  P = e^(S - m');  O = O e^(m - m') + P V;  l likewise
//
// Source: Milakov & Gimelshein 1805.02867 (online softmax); Dao et al. 2205.14135 (flash attention).
//
// Contract C2: tiles start at multiples of 64 in the sequence, and a row processes them in order. A masked key has
// the score -inf and adds exactly zero. So a row has the same bits in decode and in prefill, with other rows or
// alone, in one chunk or in many. (If a V row that only later rows see holds an infinity, that zero becomes NaN:
// engine/verdicts.py describes how such a draft is treated.)
//
// A sink is one more score in a head's softmax, without a key and a value: every row begins with m = sink, l = 1.
//
// A task is one kv head of one sequence and up to `kTaskRows` query rows that read it: rows = tokens x query heads
// of the group. So the heads of a group share each packed tile, and in prefill many tokens share it. Bytes: K and V
// of the visible keys, once per task. FLOPs: 4 head_dim for each (row, key). Limit: in prefill, the dot-product units,
// with about a third of the time in the softmax.
//
// Here tiles are packed. attention_in_place.h reads values where they are, and attention_int8.h a cache in int8; tasks
// and softmax are the same.

#pragma once

#include "keytile.h"
#include "threads.h"
#include "tile.h"

namespace minillm::cpu {
namespace {

constexpr int64_t kTaskRows = 192;

// One task: rows [first_token, last_token) of sequence `seq`, query heads of `heads` kv heads from `kv_head` on.
struct Task {
  int64_t seq, kv_head, heads, first_token, last_token;
};

// Numbers all tasks of a batch: sequence by sequence, and within a sequence head by head. So the expensive late
// rows of a long prompt are spread over the numbering. A sequence with at most `join_rows` rows a head is one task with
// all heads if there are enough such sequences for all threads.
struct TaskList {
  const AttentionArgs& a;
  int64_t group, tokens_per_task, join_rows, total = 0, most_rows = 0;
  Scratch<int64_t> first;  // [num_seqs + 1]: number of each sequence's first task

  TaskList(const AttentionArgs& args, int64_t most_joined)
      : a(args),
        group(args.heads.num_heads / args.heads.num_kv_heads),
        tokens_per_task(larger(1, kTaskRows / group)),
        join_rows(most_joined),
        first(args.batch.num_seqs + 1) {
    if (!enough_to_join()) join_rows = 0;
    for (int64_t s = 0; s < a.batch.num_seqs; s++) {
      first.data[s] = total;
      total += joined(s) ? 1 : chunks(s) * a.heads.num_kv_heads;
      int64_t most = joined(s) ? rows(s) * a.heads.num_heads : smaller(rows(s), tokens_per_task) * group;
      most_rows = larger(most_rows, most);
    }
    first.data[a.batch.num_seqs] = total;
  }
  int64_t rows(int64_t s) const { return a.batch.query_start[s + 1] - a.batch.query_start[s]; }
  bool joined(int64_t s) const { return rows(s) && rows(s) * group <= join_rows; }
  int64_t chunks(int64_t s) const { return (rows(s) + tokens_per_task - 1) / tokens_per_task; }

  // Whether no sequence is so long that the other threads would wait for its heads.
  bool enough_to_join() const {
    int64_t all = 0, longest = 0;
    for (int64_t s = 0; s < a.batch.num_seqs; s++) {
      if (!joined(s)) continue;
      all += a.batch.kv_len[s];
      longest = larger(longest, a.batch.kv_len[s]);
    }
    return 2 * (thread_count() - 1) * longest <= all;
  }

  // Task `number`. Within a head the last chunk of a prompt comes first: it sees the most keys.
  Task at(int64_t number) const {
    int64_t low = 0, high = a.batch.num_seqs;
    while (high - low > 1) {
      int64_t middle = (low + high) / 2;
      (first.data[middle] <= number ? low : high) = middle;
    }
    if (joined(low)) return {low, 0, a.heads.num_kv_heads, 0, rows(low)};
    int64_t inside = number - first.data[low], count = chunks(low);
    int64_t begin = (count - 1 - inside % count) * tokens_per_task;
    return {low, inside / count, 1, begin, smaller(begin + tokens_per_task, rows(low))};
  }
};

// Scales the scores of one tile and sets those of keys outside [begin, end) to minus infinity; returns the highest.
INLINE float mask_scores(const float* scores, int64_t begin, int64_t end, float scale, vf s[kKeyTile / VL]) {
  vf highest = splat(-__builtin_inff());
  vi lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  bool sees_all = begin <= 0 && end >= kKeyTile;
#pragma GCC unroll 16
  for (int p = 0; p < kKeyTile / VL; p++) {
    s[p] = load(scores + p * VL) * scale;
    vi key = lane + p * VL;
    if (!sees_all) s[p] = ((key >= (int)begin) & (key < (int)end)) ? s[p] : splat(-__builtin_inff());
    highest = vmax(highest, s[p]);
  }
  return max_lanes(highest);
}

// Weights P = e^(S scale - m) of one tile, rounded to `Weight`. Updates m and l. Returns the factor for O: exactly 1 if
// the maximum has not changed, which is the usual case.
template <class Weight, class X>
INLINE float softmax_step(const float* scores, X* weights, int64_t begin, int64_t end, float scale, float& m,
                          float& l) {
  vf s[kKeyTile / VL];
  float highest = mask_scores(scores, begin, end, scale, s);
  float correction = 1.0f;
  if (!(highest <= m)) {
    correction = vexp(splat(m - highest))[0];
    m = highest;
  } else if (m == -__builtin_inff()) {  // nothing visible so far
    for (int p = 0; p < kKeyTile / VL; p++) store(weights + p * VL, vf{});
    return correction;
  }
  vf sum = {};
#pragma GCC unroll 16
  for (int p = 0; p < kKeyTile / VL; p++) {
    vf weight = rounded<Weight>(vexp(s[p] - m));
    store(weights + p * VL, weight);
    sum = sum + weight;  // sum of the rounded weights, as they are used: they then sum to one
  }
  l = l * correction + sum_lanes(sum);
  return correction;
}

// A thread's memory for the rows of a task, up to `rows`; q and the weights as `X`. Scores and weights hold the rows of
// one register tile only, so they stay in the L1 cache.
template <class X>
struct TaskRows {
  int64_t width;
  Scratch<X> q, p;
  Scratch<float> scores, out, m, l;

  TaskRows(int64_t rows, int64_t dim)
      : width((dim + 15) / 16 * 16),
        q(rows * dim + VL),
        p(kMaxRows * kKeyTile),
        scores(kMaxRows * kKeyTile),
        out(rows * width),
        m(rows),
        l(rows) {}
};

template <class M, class T>
struct Workspace : TaskRows<typename M::X> {
  Scratch<typename M::W> keys, values;
  Scratch<T> zeros;

  Workspace(int64_t rows, int64_t dim, int64_t slot_size)
      : TaskRows<typename M::X>(rows, dim),
        keys(kKeyTile * dim),
        values(kKeyTile * this->width),
        zeros(slot_size + VL) {
    memset(zeros.data, 0, (slot_size + VL) * sizeof(T));
  }
};

// The positions of a task's rows and the range of keys they see.
struct Span {
  int64_t row_begin, first_pos, begin, end;

  Span(const AttentionArgs& a, const Task& task) : row_begin(a.batch.query_start[task.seq]) {
    int64_t before = a.batch.kv_len[task.seq] - (a.batch.query_start[task.seq + 1] - row_begin);
    first_pos = before + task.first_token;
    end = before + task.last_token;
    begin = (a.window ? larger(0, first_pos - a.window + 1) : 0) / kKeyTile * kKeyTile;
  }
};

// Scales the scores of one tile and keeps them below the cap: cap tanh(s / cap). Source: Gemma 2, 2408.00118.
INLINE void cap_scores(float* scores, float scale, float cap) {
  for (int p = 0; p < kKeyTile; p += VL) store(scores + p, cap * vtanh(load(scores + p) * scale / cap));
}

INLINE int64_t rows_of_head(const AttentionArgs& a, const Task& task) {
  return (task.last_token - task.first_token) * (a.heads.num_heads / a.heads.num_kv_heads);
}

// Where the rows of a task begin, head by head: q as `X`, nothing seen so far but the sink.
template <class T, class X>
void begin_rows(const AttentionArgs& a, TaskRows<X>& s, const Task& task, const Span& span) {
  int64_t dim = a.heads.head_dim, group = a.heads.num_heads / a.heads.num_kv_heads;
  int64_t rows = rows_of_head(a, task);
  memset(s.out.data, 0, task.heads * rows * s.width * sizeof(float));
  for (int64_t r = 0; r < task.heads * rows; r++) {
    const T* sinks = static_cast<const T*>(a.sinks);
    int64_t head = (task.kv_head + r / rows) * group + r % group, token = task.first_token + r % rows / group;
    s.m.data[r] = sinks ? load_n(sinks + head, 1)[0] : -__builtin_inff();
    float sum = s.m.data[r] < __builtin_inff() ? 1 : __builtin_nanf("");  // an infinite sink is a damaged weight
    s.l.data[r] = sinks ? sum : 0;
    const T* from = static_cast<const T*>(a.q) + (span.row_begin + token) * a.q_stride + head * dim;
    for (int64_t i = 0; i < dim; i += VL) store_n(s.q.data + r * dim + i, load_n(from + i, dim - i), dim - i);
  }
}

template <class T, class X>
void end_rows(const AttentionArgs& a, const TaskRows<X>& s, const Task& task, const Span& span) {
  int64_t dim = a.heads.head_dim, group = a.heads.num_heads / a.heads.num_kv_heads;
  int64_t rows = rows_of_head(a, task);
  for (int64_t r = 0; r < task.heads * rows; r++) {
    int64_t head = (task.kv_head + r / rows) * group + r % group, token = task.first_token + r % rows / group;
    T* to = static_cast<T*>(a.out) + ((span.row_begin + token) * a.heads.num_heads + head) * dim;
    for (int64_t i = 0; i < dim; i += VL)
      store_n(to + i, load(s.out.data + r * s.width + i) / s.l.data[r], dim - i);
  }
}

// Multiplies the output so far by the factor that `softmax_step` returned.
INLINE void rescale(float* out, int64_t width, float correction) {
  if (correction == 1.0f) return;
  for (int64_t d = 0; d < width; d += VL) store(out + d, load(out + d) * correction);
}

// The keys [begin, end) of the tile at `base` that a row at `position` sees.
struct Visible {
  int64_t begin, end;

  Visible(const AttentionArgs& a, int64_t position, int64_t base)
      : begin(smaller(a.window ? larger(0, position - a.window + 1 - base) : 0, kKeyTile)),
        end(larger(0, smaller(position + 1 - base, kKeyTile))) {}
};

template <class T>
TileSlots<T> first_tile(const AttentionArgs& a, const Task& task, const T* zeros) {
  Span span(a, task);
  return TileSlots<T>(a, task.seq, span.begin, span.end - span.begin, zeros);
}

// One step of the online softmax: rows [r, r + count) of a task and the packed tile that begins at key `base`.
template <class M, class T>
void attend_tile(const AttentionArgs& a, Workspace<M, T>& s, const Span& span, int64_t base, int64_t r, int64_t count) {
  int64_t dim = a.heads.head_dim, group = a.heads.num_heads / a.heads.num_kv_heads, width = s.width;
  float scale = a.softcap ? 1 : a.scale;
  product<M>(s.q.data + r * dim, dim, count, s.keys.data, 16 * dim, kKeyTile / 16, dim / M::kStep, s.scores.data,
             kKeyTile, false);
  for (int64_t i = 0; i < count; i++) {
    Visible keys(a, span.first_pos + (r + i) / group, base);
    if (a.softcap) cap_scores(s.scores.data + i * kKeyTile, a.scale, a.softcap);
    float correction = softmax_step<typename M::X>(s.scores.data + i * kKeyTile, s.p.data + i * kKeyTile, keys.begin,
                                                   keys.end, scale, s.m.data[r + i], s.l.data[r + i]);
    rescale(s.out.data + (r + i) * width, width, correction);
  }
  product<M>(s.p.data, kKeyTile, count, s.values.data, 16 * kKeyTile, width / 16, kKeyTile / M::kStep,
             s.out.data + r * width, width, true);
}

// `tile`: on entry the slots of this task's first tile, on return those of the next task's. Packing a tile prefetches
// the rows of the next one.
template <class M, class T>
void attend_task(const AttentionArgs& a, Workspace<M, T>& s, const Task& task, const Task* next_task,
                 TileSlots<T>& tile) {
  int64_t dim = a.heads.head_dim, rows = rows_of_head(a, task), offset = task.kv_head * dim, next_offset = offset;
  Span span(a, task);
  begin_rows<T>(a, s, task, span);
  for (int64_t base = span.begin; base < span.end; base += kKeyTile) {
    TileSlots<T> now = tile;
    if (base + kKeyTile < span.end) {
      tile = TileSlots<T>(a, task.seq, base + kKeyTile, span.end - base - kKeyTile, s.zeros.data);
    } else if (next_task) {
      tile = first_tile(a, *next_task, s.zeros.data);
      next_offset = next_task->kv_head * dim;
    }
    pack_keys(TileRows<T>{now.k, offset}, TileRows<T>{tile.k, next_offset}, dim, s.keys.data);
    pack_values(TileRows<T>{now.v, offset}, TileRows<T>{tile.v, next_offset}, dim, s.values.data);
    for (int64_t r = 0; r < rows; r += kMaxRows) attend_tile(a, s, span, base, r, smaller(kMaxRows, rows - r));
  }
  end_rows<T>(a, s, task, span);
}

}  // namespace
}  // namespace minillm::cpu
