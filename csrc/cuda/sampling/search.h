// The threshold of a filter, from the sorted slices of a row.
//
//     top-k    weight of an id: 1          enough: k
//     top-p    weight of an id: e^x        enough: top_p times the total weight of the ids that top-k kept
//
// The threshold is the highest rank t such that the ids with rank >= t have enough weight. It is the rank of an id,
// which is searched for in all slices at once. In each slice a range of ids is left that it could be:
//
//     slice 0    | too high | [ . . . . . | . . . . ] | too low |      a round tries 16 pivots, evenly spaced in
//     slice 1    |   too high   | [ . . | . . ] |    too low    |      the ranges laid end to end, one for each warp
//     slice 2    | too high | [ . ] |          too low          |
//
// A binary search in each slice counts the ids that rank at least as high as the pivot, and the running sum there is
// their weight. The highest pivot with enough weight becomes the new lower end, the next pivot above it the upper end:
// about a sixteenth of the ids is left, and 150,000 ids take five rounds. One id is left at last. Each round excludes
// all pivots but one, so the search ends for any ranks.

#pragma once

#include "sort.h"

namespace minillm::cuda {

constexpr int kMaxSlices = kMaxTokenIds / kSlice;

// The sorted slices of one row, and the range that is left of each.
struct Ranges {
  const uint64_t* ranks;  // [num_ids]
  const double* masses;   // [num_ids]
  int num_ids, slices;
  int *low, *high;        // [slices], in shared memory
  uint16_t* found;        // [kSliceWarps, kMaxSlices], in shared memory: where each pivot stands in each slice

  __device__ __forceinline__ int size(int slice) const { return min(kSlice, num_ids - slice * kSlice); }

  __device__ __forceinline__ int left() const {
    int sum = 0;
    for (int slice = 0; slice < slices; slice++) sum += high[slice] - low[slice];
    return sum;
  }
  // The rank of entry `place` of the ranges laid end to end.
  __device__ __forceinline__ uint64_t at(int place) const {
    int slice = 0;
    for (; place >= high[slice] - low[slice]; slice++) place -= high[slice] - low[slice];
    return ranks[slice * kSlice + low[slice] + place];
  }
  // The number of ids of the slice with rank >= pivot, if it is in the slice's range.
  __device__ __forceinline__ int count(int slice, uint64_t pivot) const {
    int from = low[slice], to = high[slice];
    while (from < to) {
      int middle = (from + to) / 2;
      if (ranks[slice * kSlice + middle] >= pivot)
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

__device__ __forceinline__ double warp_sum(double sum) {
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  return sum;
}

// The total weight of all ranges' ids and of those above them. Each warp computes it by itself.
template <class Weight>
__device__ __forceinline__ double total_weight(const Ranges& r, Weight weight) {
  double sum = 0;
  for (int slice = threadIdx.x % 32; slice < r.slices; slice += 32) sum += weight(r, slice, r.high[slice]);
  return warp_sum(sum);
}

// The weight of the ids with rank >= pivot. The warp leaves in found[slice] how many there are.
template <class Weight>
__device__ __forceinline__ double weigh(const Ranges& r, uint64_t pivot, uint16_t* found, Weight weight) {
  double sum = 0;
  for (int slice = threadIdx.x % 32; slice < r.slices; slice += 32) {
    int count = r.count(slice, pivot);
    found[slice] = static_cast<uint16_t>(count);
    sum += weight(r, slice, count);
  }
  return warp_sum(sum);
}

// The threshold; the ranges end below it afterwards. Their ids and those above must have enough weight.
template <class Weight>
__device__ __forceinline__ uint64_t threshold(const Ranges& r, double enough, Weight weight) {
  SHARED(uint64_t, pivots, [kSliceWarps]);
  SHARED(int, is_enough, [kSliceWarps]);
  int warp = threadIdx.x / 32, left;
  while ((left = r.left()) > 1) {
    uint64_t pivot = r.at(static_cast<int>((2 * warp + 1) * static_cast<int64_t>(left) / (2 * kSliceWarps)));
    double sum = weigh(r, pivot, r.found + warp * kMaxSlices, weight);
    if (threadIdx.x % 32 == 0) pivots[warp] = pivot, is_enough[warp] = sum >= enough;
    __syncthreads();  // the pivots are written, and all threads have read the ranges
    int lower = -1, upper = -1;
    for (int i = 0; i < kSliceWarps; i++)
      if (is_enough[i] && (lower < 0 || pivots[i] > pivots[lower])) lower = i;
    for (int i = 0; i < kSliceWarps; i++)
      if ((lower < 0 || pivots[i] > pivots[lower]) && (upper < 0 || pivots[i] < pivots[upper])) upper = i;
    for (int slice = threadIdx.x; slice < r.slices; slice += kSliceThreads) {
      if (lower >= 0) r.high[slice] = r.found[lower * kMaxSlices + slice];
      if (upper >= 0) r.low[slice] = r.found[upper * kMaxSlices + slice];
    }
    __syncthreads();  // the ranges are written, and all threads have read the pivots
  }
  return r.at(0);
}

}  // namespace minillm::cuda
