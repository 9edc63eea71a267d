// The threshold of a filter, from the sorted slices of a row.
//
//     top-k    weight of an id: 1          enough: k
//     top-p    weight of an id: e^x        enough: top_p times the total weight of the ids that top-k kept
//
// The threshold is the highest rank t such that the ids with rank >= t have enough weight. It is the rank of an id,
// which is searched for in all slices at once. In each slice a range of ids is left that it could be:
//
//     slice 0    | too high | [ . . . . . | . . . . ] | too low |      a round tries 8 pivots, evenly spaced in
//     slice 1    |   too high   | [ . . | . . ] |    too low    |      the ranges laid end to end, one for each
//     slice 2    | too high | [ . ] |          too low          |      group of two warps
//
// A binary search in each slice counts the ids that rank at least as high as the pivot, and the running sum there is
// their weight. The highest pivot with enough weight becomes the new lower end, the next pivot above it the upper end:
// about an eighth of the ids is left, and 150,000 ids take six rounds. One id is left at last. Each round excludes
// all pivots but one, so the search ends for any ranks.

#pragma once

#include "sort.h"

namespace minillm::cuda {

constexpr int kMaxSlices = kMaxTokenIds / kSlice;
constexpr int kPivots = 8, kGroup = kSliceThreads / kPivots, kGroupWarps = kGroup / 32;

struct Pivot {
  uint64_t rank;
  int slice, count;  // where it is: the ids of this slice with rank >= its own
};

// The sorted slices of one row, and the range that is left of each.
struct Ranges {
  const uint64_t* ranks;  // [num_ids]
  const double* masses;   // [num_ids]
  int num_ids, slices;
  int *low, *high;        // [slices], in shared memory

  __device__ __forceinline__ int size(int slice) const { return min(kSlice, num_ids - slice * kSlice); }

  __device__ __forceinline__ int left() const {
    int sum = 0;
    for (int slice = 0; slice < slices; slice++) sum += high[slice] - low[slice];
    return sum;
  }
  // Entry `place` of the ranges laid end to end.
  __device__ __forceinline__ Pivot at(int place) const {
    int slice = 0;
    for (; place >= high[slice] - low[slice]; slice++) place -= high[slice] - low[slice];
    place += low[slice];
    return {ranks[slice * kSlice + place], slice, place + 1};
  }
  // The number of ids of the slice with rank >= the pivot's, if that is in the slice's range.
  __device__ __forceinline__ int count(int slice, const Pivot& pivot) const {
    if (slice == pivot.slice) return pivot.count;
    int from = low[slice], to = high[slice];
    while (from < to) {
      int middle = (from + to) / 2;
      if (ranks[slice * kSlice + middle] >= pivot.rank)
        from = middle + 1;
      else
        to = middle;
    }
    return from;
  }
};

// The weights of the first `count` ids of a slice.
struct Number {
  __device__ __forceinline__ double operator()(const Ranges&, int, int count) const { return count; }
};
struct Mass {
  __device__ __forceinline__ double operator()(const Ranges& r, int slice, int count) const {
    return count ? r.masses[slice * kSlice + count - 1] : 0;
  }
};

// The weight of the first count(slice) ids of all slices: a group's warps leave it in their places of `sums`.
template <class Count, class Weight>
__device__ __forceinline__ void weigh(const Ranges& r, Count count, Weight weight, double* sums) {
  double sum = 0;
  for (int slice = threadIdx.x % kGroup; slice < r.slices; slice += kGroup) sum += weight(r, slice, count(slice));
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
}

__device__ __forceinline__ double sum_of_group(const double* sums, int group) {
  double sum = 0;
  for (int warp = 0; warp < kGroupWarps; warp++) sum += sums[group * kGroupWarps + warp];
  return sum;
}

// The weight of the ids down to the ends of the ranges. All threads must call it, once in a kernel.
template <class Weight>
__device__ __forceinline__ double total_weight(const Ranges& r, Weight weight) {
  SHARED(double, totals, [kSliceWarps]);
  weigh(r, [&](int slice) { return r.high[slice]; }, weight, totals);
  __syncthreads();  // the sums are written
  return sum_of_group(totals, 0);
}

// The threshold; the ranges end with its id afterwards. If all ids have too little weight, it is the lowest rank.
// All threads must call it, and a barrier is needed between it and other uses of the ranges.
template <class Weight>
__device__ __forceinline__ uint64_t threshold(const Ranges& r, double enough, Weight weight) {
  SHARED(uint16_t, found, [kPivots][kMaxSlices]);  // how many ids of each slice rank at least as high as each pivot
  SHARED(uint64_t, ranks, [kPivots]);
  SHARED(double, sums, [kSliceWarps]);
  int group = threadIdx.x / kGroup, left;
  while ((left = r.left()) > 1) {
    int pivots = min(left, kPivots);
    if (group < pivots) {
      Pivot pivot = r.at(static_cast<int>((2 * group + 1) * static_cast<int64_t>(left) / (2 * pivots)));
      auto count = [&](int slice) { return found[group][slice] = static_cast<uint16_t>(r.count(slice, pivot)); };
      weigh(r, count, weight, sums);
      if (threadIdx.x % kGroup == 0) ranks[group] = pivot.rank;
    }
    __syncthreads();  // the pivots are written, and all threads have read the ranges
    int lower = -1, upper = -1;
    for (int i = 0; i < pivots; i++)
      if (sum_of_group(sums, i) >= enough && (lower < 0 || ranks[i] > ranks[lower])) lower = i;
    for (int i = 0; i < pivots; i++)
      if ((lower < 0 || ranks[i] > ranks[lower]) && (upper < 0 || ranks[i] < ranks[upper])) upper = i;
    for (int slice = threadIdx.x; slice < r.slices; slice += kSliceThreads) {
      if (lower >= 0) r.high[slice] = found[lower][slice];
      if (upper >= 0) r.low[slice] = found[upper][slice];
    }
    __syncthreads();  // the ranges are written, and all threads have read the pivots
  }
  return r.at(0).rank;
}

}  // namespace minillm::cuda
