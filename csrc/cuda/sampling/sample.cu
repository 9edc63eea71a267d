// sample: from logits to a token, several blocks per row (rules and reasons: minillm/ops/sampling.py).
//
//     mask, penalty -> highest -> (x - highest) / temperature -> top-k -> top-p -> min-p -> + noise -> argmax
//
// Five launches, since no block waits for another. A block has one slice of a row (slice.h); `cut` and `finish` have
// a row:
//
//                   reads                        writes
//     highest       logits                       the most likely id of each slice
//     sort          logits                       each slice sorted by rank (sort.h), its masses    top-k, top-p only
//     cut           a few of those               the lowest rank that stays (search.h)             top-k, top-p only
//     draw          logits                       the best id of each slice, with noise (noise.h)   not greedy
//     finish        the best of each slice       the token
//
// The two filters are one search: the highest rank t such that the ids with rank >= t have enough weight. Top-p is
// searched for among the ids that top-k kept. Ranks are distinct, so ties need no care.
//
// Bytes: the row of logits once (greedy), twice (no top-k, no top-p) or three times. A row that is cut also writes 16
// bytes an id and reads a few per cent of them. Everything after the first pass comes from L2 if there are few rows.
// Limit: for one row the latency of five launches and of the search; for many, sorting in shared memory (78 stages).
//
// One e^x for each id, and noise for few (noise.h). Float64 is used where the reference uses it: for sums of
// probabilities and for the final argmax. The order of a sum depends only on the vocabulary and on the row.
//
// Sources: the comparison of radix select with sorting on GPUs in Zhang et al., "Parallel Top-K Algorithms on GPU"
// (SC 2023); selection from several sorted runs is Frederickson and Johnson, "The Complexity of Selection and Ranking
// in X + Y and Matrices with Sorted Columns" (JCSS 1982). A radix select by 8 bits takes four passes over a row for
// the value of one threshold, and top-p can begin only when top-k is done; ids that tie need passes of their own.
// Sorted slices answer both filters, with ties, after one pass. Left out: a sort of only the likely ids, and warps
// that sort in registers.

#include "noise.h"
#include "search.h"

namespace minillm::cuda {
namespace {

constexpr int64_t kScratchBytes = 1 << 26;  // most of one round of launches; more rows take more rounds
constexpr int kMaxRows = 1 << 15;           // of one round: a grid has at most 65,535 in y

template <class T>
__global__ void __launch_bounds__(kSliceThreads) highest_kernel(const __grid_constant__ Work w) {
  int slice = blockIdx.x;
  Row row(w, blockIdx.y);
  if (!row.finite) return;
  Best best = {-INFINITY, w.p.num_token_ids};
  read_values<T>(w, row, slice).each([&](int id, float value) { best = better(best, {value, id}); });
  best = block_best(best);
  if (threadIdx.x == 0) w.highest[static_cast<int64_t>(row.part) * w.slices + slice] = best;
}

template <class T>
__global__ void __launch_bounds__(kSliceThreads, 2) sort_kernel(const __grid_constant__ Work w) {
  SHARED(uint64_t, ranks, [kSlice]);
  int slice = blockIdx.x, first = slice * kSlice, count = min(kSlice, w.p.num_token_ids - first), size = 1;
  Row row(w, blockIdx.y);
  if (!row.is_cut(w)) return;
  while (size < count) size *= 2;
  float highest = static_cast<float>(best_of_row(w, w.highest, row.part).score), divisor = moderate(row.temperature);
  for (int i = count + threadIdx.x; i < size; i += kSliceThreads) ranks[i] = 0;  // below every rank
  read_values<T>(w, row, slice).each([&](int id, float value) {
    ranks[id - first] = rank_of((value - highest) / divisor, id);
  });
  __syncthreads();  // the ranks are written
  sort_ranks(ranks, size);
  int64_t place = static_cast<int64_t>(row.part) * w.p.num_token_ids + first;
  for (int i = threadIdx.x; i < count; i += kSliceThreads) w.keys[place + i] = ranks[i];
  if (row.top_p < 1) write_masses(ranks, count, w.masses + place);
}

__global__ void __launch_bounds__(kSliceThreads) cut_kernel(const __grid_constant__ Work w) {
  SHARED(int, low, [kMaxSlices]);
  SHARED(int, high, [kMaxSlices]);
  Row row(w, blockIdx.x);
  if (!row.is_cut(w)) return;
  int num_ids = w.p.num_token_ids;
  int64_t place = static_cast<int64_t>(row.part) * num_ids;
  Ranges ranges = {w.keys + place, w.masses + place, num_ids, w.slices, low, high};
  uint64_t lowest = 0;
  for (int slice = threadIdx.x; slice < w.slices; slice += kSliceThreads)
    low[slice] = 0, high[slice] = ranges.size(slice);
  __syncthreads();  // the ranges are written
  if (row.top_k > 0 && row.top_k < num_ids) {
    lowest = threshold(ranges, static_cast<double>(row.top_k), Number());
    __syncthreads();  // the ranges have been read
    for (int slice = threadIdx.x; slice < w.slices; slice += kSliceThreads) low[slice] = 0;
  }  // the ranges of top-p end where those of top-k ended; total_weight has the next barrier
  double total = row.top_p < 1 ? total_weight(ranges, Mass()) : 0, enough = row.top_p * total;
  if (row.top_p < 1 && total >= enough) lowest = threshold(ranges, enough, Mass());  // not if the total is NaN
  if (threadIdx.x == 0) w.lowest[row.part] = lowest;
}

template <class T>
__global__ void __launch_bounds__(kSliceThreads) draw_kernel(const __grid_constant__ Work w) {
  int slice = blockIdx.x;
  Row row(w, blockIdx.y);
  if (!row.is_drawn()) return;
  Best likeliest = best_of_row(w, w.highest, row.part);
  float highest = static_cast<float>(likeliest.score), divisor = moderate(row.temperature);
  float least = row.min_p > 0 ? static_cast<float>(log(row.min_p)) : -INFINITY;  // min_p times the highest weight, e^0
  uint64_t lowest = row.is_cut(w) ? w.lowest[row.part] : 0, key = w.p.keys[row.index];
  // The most likely id passes every filter, so the token's score is not below this one. NaN leaves no id out.
  double reached = (highest - highest) / divisor + gumbel(uniform_bits(key, likeliest.id));

  Best drawn = {-INFINITY, w.p.num_token_ids};
  read_values<T>(w, row, slice).each([&](int id, float logit) {
    float value = (logit - highest) / divisor;
    uint64_t bits = uniform_bits(key, id);
    bool out = value == -INFINITY || value < least || rank_of(value, id) < lowest;
    if (out || value + gumbel_bound(bits) < reached) return;
    drawn = better(drawn, {value + gumbel(bits), id});
  });
  drawn = block_best(drawn);
  if (threadIdx.x == 0) w.drawn[static_cast<int64_t>(row.part) * w.slices + slice] = drawn;
}

__global__ void __launch_bounds__(kSliceThreads) finish_kernel(const __grid_constant__ Work w) {
  Row row(w, blockIdx.x);
  int64_t token = 0;
  if (row.finite) token = best_of_row(w, row.is_drawn() ? w.drawn : w.highest, row.part).id;
  if (threadIdx.x == 0) w.p.tokens[row.index] = token;
}

int slices_of(int num_token_ids) { return ceil_div(num_token_ids, kSlice); }

int64_t bytes_of_row(int num_token_ids) {
  int64_t of_id = sizeof(uint64_t) + sizeof(double), of_slice = 2 * sizeof(Best);
  return of_id * num_token_ids + of_slice * slices_of(num_token_ids) + sizeof(uint64_t);
}

// The rows of one round of launches.
int rows_at_once(int rows, int num_token_ids) {
  int64_t fitting = kScratchBytes / bytes_of_row(num_token_ids);
  return static_cast<int>(min(max(fitting, int64_t{1}), int64_t{min(rows, kMaxRows)}));
}

Work work_of(const SampleArgs& p, int rows) {
  int64_t ids = int64_t{rows} * p.num_token_ids, parts = int64_t{rows} * slices_of(p.num_token_ids);
  auto* keys = static_cast<uint64_t*>(p.scratch);
  auto* masses = reinterpret_cast<double*>(keys + ids);
  auto* highest = reinterpret_cast<Best*>(masses + ids);
  return {p, slices_of(p.num_token_ids), keys, masses, highest, highest + parts,
          reinterpret_cast<uint64_t*>(highest + 2 * parts)};
}

}  // namespace

int64_t sample_scratch_bytes(int rows, int num_token_ids) {
  return rows_at_once(rows, num_token_ids) * bytes_of_row(num_token_ids);
}

void sample(const SampleArgs& p, Stream stream) {
  int at_once = rows_at_once(p.rows, p.num_token_ids);
  Work w = work_of(p, at_once);
  for (w.p.first_row = 0; w.p.first_row < p.rows; w.p.first_row += at_once) {
    unsigned rows = min(at_once, p.rows - w.p.first_row), slices = w.slices;
    with_number_type(p.dtype, [&](auto zero) {
      using T = decltype(zero);
      LAUNCH(highest_kernel<T>, dim3(slices, rows), kSliceThreads, 0, stream_of(stream), w);
      LAUNCH(sort_kernel<T>, dim3(slices, rows), kSliceThreads, 0, stream_of(stream), w);
      LAUNCH(cut_kernel, rows, kSliceThreads, 0, stream_of(stream), w);
      LAUNCH(draw_kernel<T>, dim3(slices, rows), kSliceThreads, 0, stream_of(stream), w);
    });
    LAUNCH(finish_kernel, rows, kSliceThreads, 0, stream_of(stream), w);
  }
}

}  // namespace minillm::cuda
