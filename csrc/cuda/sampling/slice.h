// What the kernels of `sample` share: the slices of a row, their values, and the best of several candidates.
//
//     row     0 ...... 4095 | 4096 ...... 8191 | 8192 ... 11000      each slice is one block's
//     slices        0                1                 2
//
// The number of slices depends on the vocabulary only. So does the order of every sum, whatever the number of
// rows (contract C2).

#pragma once

#include "dispatch.h"

namespace minillm::cuda {

constexpr int kSlice = 4096, kSliceThreads = 512, kPerThread = kSlice / kSliceThreads, kSliceWarps = kSliceThreads / 32;

// A candidate for the argmax. The higher score is better; of equal scores, the lower id.
struct Best {
  double score;
  int id;
};

__device__ __forceinline__ Best better(Best a, Best b) {
  return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

// What a launch works on: rows first_row, first_row + 1, ... of the arguments, and the parts of the scratch memory.
// Row 0 of the parts is first_row. `keys` and `masses` have the ids of a row slice by slice (sort.h).
struct Work {
  SampleArgs p;
  int slices;
  uint64_t* keys;         // [rows, num_token_ids]
  double* masses;         // [rows, num_token_ids]
  Best *highest, *drawn;  // [rows, slices]: the slice's most likely id, and the one drawn from it
  uint64_t* lowest;       // [rows]: ids of a lower rank are filtered out
};

// A row of a launch and its parameters.
struct Row {
  int part;       // the row in the scratch memory
  int64_t index;  // the row in the arguments
  double temperature, top_p, min_p, penalty;
  int64_t top_k;
  bool finite;

  __device__ __forceinline__ Row(const Work& w, int part) : part(part), index(w.p.first_row + part) {
    const double* numbers = w.p.numbers + 4 * index;
    temperature = numbers[0], top_p = numbers[1], min_p = numbers[2], penalty = numbers[3];
    top_k = w.p.top_k[index];
    finite = !w.p.finite || w.p.finite[index];
  }
  __device__ __forceinline__ bool is_drawn() const { return finite && temperature != 0; }
  // Whether top-k or top-p may leave ids out.
  __device__ __forceinline__ bool is_cut(const Work& w) const {
    return is_drawn() && ((top_k > 0 && top_k < w.p.num_token_ids) || top_p < 1);
  }
};

__device__ __forceinline__ float moderate(double divisor) {
  return static_cast<float>(min(max(divisor, 1e-20), 1e20));
}

// The best candidate of the block, returned in every thread. All threads of the block must call it.
__device__ __forceinline__ Best block_best(Best best) {
  SHARED(double, scores, [kSliceWarps]);
  SHARED(int, ids, [kSliceWarps]);
  for (int step = 16; step > 0; step /= 2)
    best = better(best, {__shfl_xor_sync(0xffffffff, best.score, step), __shfl_xor_sync(0xffffffff, best.id, step)});
  __syncthreads();  // the previous call's results have been read
  if (threadIdx.x % 32 == 0) scores[threadIdx.x / 32] = best.score, ids[threadIdx.x / 32] = best.id;
  __syncthreads();
  for (int warp = 0; warp < kSliceWarps; warp++) best = better(best, {scores[warp], ids[warp]});
  return best;
}

// The best of a row's slices, in every thread of the block.
__device__ __forceinline__ Best best_of_row(const Work& w, const Best* parts, int part) {
  Best best = {-INFINITY, w.p.num_token_ids};
  for (int slice = threadIdx.x; slice < w.slices; slice += kSliceThreads)
    best = better(best, parts[static_cast<int64_t>(part) * w.slices + slice]);
  return block_best(best);
}

// The logits of a slice as floats, after the repetition penalty. A thread holds ids first, first + kSliceThreads, ...
struct Values {
  int first, count;  // of this thread: values[i] of ids past the end of the slice have no meaning
  float values[kPerThread];

  __device__ __forceinline__ int id(int i) const { return first + i * kSliceThreads; }

  template <class F>
  __device__ __forceinline__ void each(F f) const {
    UNROLL
    for (int i = 0; i < kPerThread; i++)
      if (i < count) f(id(i), values[i]);
  }
};

// seen[i]: whether the slice's id number i is in the row's list, which is read once by each slice.
__device__ __forceinline__ void mark_seen(const Work& w, int64_t begin, int64_t end, int first, uint8_t* seen) {
  for (int i = threadIdx.x; i < kSlice; i += kSliceThreads) seen[i] = 0;
  __syncthreads();
  for (int64_t i = begin + threadIdx.x; i < end; i += kSliceThreads) {  // each id occurs once: no two threads
    int64_t place = w.p.seen[i] - first;                                // write to one place
    if (place >= 0 && place < kSlice) seen[place] = 1;
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ Values read_values(const Work& w, const Row& row, int slice) {
  SHARED(uint8_t, seen, [kSlice]);
  Values mine;
  mine.first = slice * kSlice + threadIdx.x;
  int left = w.p.num_token_ids - mine.first;
  mine.count = left > 0 ? min(ceil_div(left, kSliceThreads), kPerThread) : 0;
  const T* logits = static_cast<const T*>(w.p.logits) + row.index * w.p.vocab_size;
  UNROLL
  for (int i = 0; i < kPerThread; i++)
    if (i < mine.count) mine.values[i] = to_float(logits[mine.id(i)]);
  int64_t begin = row.index ? w.p.seen_end[row.index - 1] : 0, end = w.p.seen_end[row.index];
  if (begin == end) return mine;  // the whole block returns
  mark_seen(w, begin, end, slice * kSlice, seen);
  float factor = moderate(row.penalty);
  UNROLL
  for (int i = 0; i < kPerThread; i++) {
    float& value = mine.values[i];
    if (i < mine.count && seen[threadIdx.x + i * kSliceThreads]) value = value > 0 ? value / factor : value * factor;
  }
  return mine;
}

}  // namespace minillm::cuda
