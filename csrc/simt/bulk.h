// Bulk copies from global to shared memory: one thread gives the order, a copy unit does the work (sm_90).
//
//     bulk_copy     a run of bytes                       [................]  ->  [................]
//     tensor_copy   a box of a tensor, rows swizzled     ...[....]...
//                                                        ...[....]...        ->  [....][....][....]
//                                                        ...[....]...
//
// Both are asynchronous: an mbarrier expects their bytes (mbarrier_arrive_expect), and is complete when they have
// landed. What a box has outside the tensor becomes zeros, which count as bytes.
// PTX ISA: cp.async.bulk, cp.async.bulk.tensor (tiled mode); CUDA driver API: cuTensorMapEncodeTiled.
//
// Left out: copies to global memory, multicast, im2col, reductions, prefetch.

#pragma once

#include "../cuda/common/tiles.h"
#include "mbarrier.h"

// Made by a launcher, given to a kernel inside its __grid_constant__ parameters.
struct TensorMap {
  TensorShape shape;
};

namespace simt {
void check_tensor_shape(const TensorShape& shape, Where where);
void bulk_copy(void* to, const void* from, size_t bytes, Mbarrier* bar);
void tensor_copy(void* to, const TensorShape& shape, const int* at, int rank, Mbarrier* bar);
}  // namespace simt

inline TensorMap make_tensor_map(const TensorShape& shape, simt::Where where = simt::Where::current()) {
  simt::check_tensor_shape(shape, where);
  return {shape};
}

// `bytes`, a multiple of 16; both addresses are multiples of 16.
__forceinline__ void bulk_copy(void* to_shared, const void* from_global, unsigned bytes, Mbarrier& bar) {
  simt::bulk_copy(to_shared, from_global, bytes, &bar);
}

// The box that begins at element `at` (the innermost dimension first), to a multiple of 128 bytes.
template <int kRank>
__forceinline__ void tensor_copy(void* to_shared, const TensorMap& map, const int (&at)[kRank], Mbarrier& bar) {
  static_assert(kRank >= 2 && kRank <= 4, "tensors of 2, 3 and 4 dimensions");
  simt::tensor_copy(to_shared, map.shape, at, kRank, &bar);
}
