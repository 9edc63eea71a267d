// Ranks of ids, and a slice sorted by rank.
//
// Each id has a *rank*, an integer. Its upper half has the bits of the id's value, mapped so that integers have the
// order of the floats. Its lower half is the id inverted, so that of two equal values the lower id ranks higher. No
// two ranks are equal.
//
//     rank    | value, 32 bits | ~id, 32 bits |      sorted as integers: by falling value, then by rising id
//
// Beside the sorted ranks of a slice stand its running sums of e^value: masses[i] is the mass of ranks 0 to i. With
// both, a binary search tells how many ids of the slice rank at least as high as some rank, and their mass.
//
// Source: Batcher, "Sorting Networks and Their Applications" (AFIPS 1968).

#pragma once

#include "slice.h"

namespace minillm::cuda {

// For the order of floats, all bits of a negative value are flipped; of a positive one, only the sign bit.
__device__ __forceinline__ uint64_t rank_of(float value, int id) {
  union {
    float value;
    uint32_t bits;
  } x = {value + 0.0f};  // -0 becomes +0: the two are equal
  uint32_t ordered = x.bits & 0x80000000u ? ~x.bits : x.bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | ~static_cast<uint32_t>(id);
}

__device__ __forceinline__ float value_of(uint64_t rank) {
  uint32_t ordered = static_cast<uint32_t>(rank >> 32);
  union {
    uint32_t bits;
    float value;
  } x = {ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered};
  return x.value;
}

// Sorts ranks[0 .. size) from the highest to the lowest; `size` is a power of two. All threads must call it.
// A bitonic network: in each stage of a merge, pairs that are `step` apart are put in order. Blocks of `width` are
// sorted alternately falling and rising, so that two neighbours make one sequence for the next merge.
__device__ __forceinline__ void sort_ranks(uint64_t* ranks, int size) {
  for (int width = 2; width <= size; width *= 2)
    for (int step = width / 2; step > 0; step /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += kSliceThreads) {
        int one = 2 * pair - (pair & (step - 1)), other = one + step;
        bool falls = !(one & width);
        uint64_t a = ranks[one], b = ranks[other];
        if ((a < b) == falls) ranks[one] = b, ranks[other] = a;
      }
      __syncthreads();  // the next stage pairs other places
    }
}

// The sum of `value` over the threads before this one. All threads must call it.
__device__ __forceinline__ double sum_before(double value) {
  SHARED(double, sums, [kSliceWarps]);
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double sum = value;
  for (int step = 1; step < 32; step *= 2) {
    double other = __shfl_up_sync(0xffffffff, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  double before = __shfl_up_sync(0xffffffff, sum, 1), earlier = 0;
  for (int i = 0; i < warp; i++) earlier += sums[i];
  return lane ? earlier + before : earlier;
}

// Writes the running sums of e^value of sorted ranks: a thread has kPerThread neighbours.
__device__ __forceinline__ void write_masses(const uint64_t* ranks, int count, double* masses) {
  int begin = threadIdx.x * kPerThread;
  double sums[kPerThread], sum = 0;
  UNROLL
  for (int i = 0; i < kPerThread; i++) {
    if (begin + i < count) sum += exp(static_cast<double>(value_of(ranks[begin + i])));
    sums[i] = sum;
  }
  double before = sum_before(sum);
  UNROLL
  for (int i = 0; i < kPerThread; i++)
    if (begin + i < count) masses[begin + i] = before + sums[i];
}

}  // namespace minillm::cuda
