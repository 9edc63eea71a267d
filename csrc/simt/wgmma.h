// wgmma: the four warps of a warpgroup multiply together, from shared memory, while they do other work (sm_90a).
//
//     c [64, N] += a [64, 16] * b [16, N]     N is 64 or 128; a thread has N / 8 times 4 numbers of c
//
//     warp 0   rows  0..15     each warp holds its 16 rows of c, and of a if a is in registers, as the mma of a warp
//     warp 1   rows 16..31     does (simt.h): with g = lane / 4 and t = 2 * (lane % 4) a lane has of each eight
//     warp 2   rows 32..47     columns (g, t) (g, t + 1) (g + 8, t) (g + 8, t + 1)
//     warp 3   rows 48..63
//
//     wgmma_fence(c);                what the threads wrote to their registers is there
//     wgmma<T>(c, a, b); ...         any number; they are done in order
//     wgmma_commit();                those since the last commit are a group
//     wgmma_wait<0>(c);              at most 0 later groups are unfinished: c may be read
//
// Until the wait nobody may touch c, nor write what a and b describe. Both b and a in shared memory are found by a
// descriptor (cuda/common/tiles.h). kMajor says which index runs along the rows in memory:
//
//     Major::k    rows of b are columns of the product, 16 numbers of k side by side: K of attention
//     Major::mn   rows of b are k, N numbers side by side: V of attention
//
// PTX ISA: wgmma.mma_async, "Matrix fragments for wgmma", "Strides". Left out: other shapes and types, sparse
// matrices, negated operands, and a product without a sum (begin with zeros).

#pragma once

#include "../cuda/common/tiles.h"
#include "warpgroup.h"

enum class Major { k, mn };

namespace simt {

struct WgmmaCall {
  float* c;
  int count;                      // numbers of c in this thread: N / 2
  const void* a;                  // 8 numbers of 16 bits, or null: a_matrix
  MatrixDescriptor a_matrix, b_matrix;
  Major a_major, b_major;
  float (*number)(uint16_t bits);
  int smallest_exponent;
};

void fence_wgmma();
void wgmma(const WgmmaCall& call, Where where);
void commit_wgmma();
void wait_wgmma(int pending_groups, float* const* arrays, int count);
uint32_t shared_address(const void* p, Where where);

template <class T>
float number_of_bits(uint16_t bits) {
  return to_float(T{bits});
}

template <class T, int kEights>
WgmmaCall wgmma_call(float (&c)[kEights][4], MatrixDescriptor b, Major major) {
  static_assert(kEights == 8 || kEights == 16, "a product has 64 or 128 columns");
  return {c[0], 4 * kEights, nullptr, {}, b, Major::k, major, number_of_bits<T>, smallest_exponent(T{})};
}

}  // namespace simt

// `c...` are all accumulators of the multiplications that follow.
template <class... Arrays>
void wgmma_fence(Arrays&...) {
  simt::fence_wgmma();
}

template <class T, Major kMajorB = Major::k, int kEights>
__forceinline__ void wgmma(float (&c)[kEights][4], const T (&a)[8], MatrixDescriptor b, simt::Where where = simt::Where::current()) {
  simt::WgmmaCall call = simt::wgmma_call<T>(c, b, kMajorB);
  call.a = a;
  simt::wgmma(call, where);
}

template <class T, Major kMajorA = Major::k, Major kMajorB = Major::k, int kEights>
__forceinline__ void wgmma(float (&c)[kEights][4], MatrixDescriptor a, MatrixDescriptor b, simt::Where where = simt::Where::current()) {
  simt::WgmmaCall call = simt::wgmma_call<T>(c, b, kMajorB);
  call.a_matrix = a;
  call.a_major = kMajorA;
  simt::wgmma(call, where);
}

inline void wgmma_commit() { simt::commit_wgmma(); }

// Waits until at most kPendingGroups groups are unfinished; `c...` are the accumulators of the others.
template <int kPendingGroups, class... Arrays>
__forceinline__ void wgmma_wait(Arrays&... c) {
  float* arrays[] = {c[0]..., nullptr};
  simt::wait_wgmma(kPendingGroups, arrays, sizeof...(c));
}

inline uint32_t shared_address(const void* p, simt::Where where = simt::Where::current()) { return simt::shared_address(p, where); }
