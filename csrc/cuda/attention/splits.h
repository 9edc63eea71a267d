// The end of a split of 512 keys (tensor_tile.h), and how a row's splits are merged: in order, by one arithmetic.
//
//     part 0     (max, sum, out)  --.
//     part 1     (max, sum, out)  ---+--> whole (max, sum, out) --> out / sum
//     part 2     (max, sum, out)  --'
//
// attention_v3 and decode_d2 merge each part as soon as it is done. The whole is touched once in 512 keys, so it lies in
// shared memory, where no thread reads another's numbers; registers would spill. decode_d3 writes the parts to global
// memory, and a second kernel merges them. The numbers are the same.

#pragma once

#include "tensor_tile.h"

namespace minillm::cuda {

// The sums of a row's four lanes become one.
template <int kDim>
__device__ __forceinline__ void finish(Part<kDim>& part) {
  UNROLL
  for (int i = 0; i < 2; i++) {
    float& sum = part.softmax[i].sum;
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
  }
}

// By what the output so far is multiplied when a split is merged, and by what the split's.
struct Factors {
  float old, added;
};

__device__ __forceinline__ Factors merge(Softmax& to, Softmax split) {
  if (split.sum == 0.0f) return {1.0f, 0.0f};  // the row sees none of its keys
  float before = to.max;
  to.max = fmaxf(before, split.max);
  Factors by = {exp2_approx(before - to.max), exp2_approx(split.max - to.max)};
  to.sum = fmaf(split.sum, by.added, to.sum * by.old);
  return by;
}

__device__ __forceinline__ float merged(float out, float split, Factors by) {
  return fmaf(split, by.added, out * by.old);
}

// A lane's two rows over the splits so far. Their output, kDim / 2 numbers, is in shared memory. The kThreads threads
// that have rows begin with thread kFirst of the block.
template <int kDim, int kThreads, int kFirst = 0>
struct Whole {
  static constexpr int kBytes = kDim / 2 * kThreads * static_cast<int>(sizeof(float));
  Softmax softmax[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
  float* memory;

  __device__ __forceinline__ explicit Whole(float* memory) : memory(memory) {
    UNROLL
    for (int i = 0; i < kDim / 2; i++) out(i) = 0;
  }

  // Number i lies beside the neighbours'.
  __device__ __forceinline__ float& out(int i) const { return memory[i * kThreads + threadIdx.x - kFirst]; }

  // Merges the part of a split that has ended; `part` then begins anew.
  __device__ __forceinline__ void add(Part<kDim>& part) {
    finish(part);
    UNROLL
    for (int i = 0; i < 2; i++) {
      Factors by = merge(softmax[i], part.softmax[i]);
      UNROLL
      for (int j = 0; j < kDim / 4; j++) {
        float& to = out(i * kDim / 4 + j);
        to = merged(to, part.out[j / 2][2 * i + j % 2], by);
      }
    }
    part = Part<kDim>();
  }

  // Writes the rows below `count`; `first_row` is the warp's first.
  template <class T>
  __device__ __forceinline__ void store(const AttentionArgs& p, const PackedRows& rows, int first_row, int count) {
    int lane = threadIdx.x % 32;
    UNROLL
    for (int i = 0; i < 2; i++) {
      int row = first_row + lane / 4 + 8 * i;
      if (row >= count) return;
      float inverse = inverse_sum(softmax[i], rows.keys(row));
      T* to = static_cast<T*>(p.out) + rows.flat(row, p.num_heads) * kDim + lane % 4 * 2;
      UNROLL
      for (int j = 0; j < kDim / 8; j++) {
        int at = i * kDim / 4 + 2 * j;
        store_wide(to + 8 * j, Vec<T, 2>{{from_float<T>(out(at) * inverse), from_float<T>(out(at + 1) * inverse)}});
      }
    }
  }
};

__device__ __forceinline__ bool ends_split(int key_tile) { return (key_tile + 1) % (kSplitKeys / kTileKeys) == 0; }

}  // namespace minillm::cuda
