// Gumbel noise of an id: a function of (key, id) only, so rows are independent (contract C3).
//
// Two logarithms in float64 for each id would cost more than all the rest. Most ids need none: the leading one-bits
// of an id's uniform number bound its noise from above, and large noise is rare (noise above g has a probability
// below e^-g). An id whose bound is below a score that some other id surely has can be left out.

#pragma once

#include "dispatch.h"

namespace minillm::cuda {

// SplitMix64's finaliser of key and id: 52 bits for a uniform number.
__device__ __forceinline__ uint64_t uniform_bits(uint64_t key, int id) {
  uint64_t x = key + (static_cast<uint64_t>(id) + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return (x ^ (x >> 31)) >> 12;
}

__device__ __forceinline__ double gumbel(uint64_t bits) {
  double uniform = (static_cast<double>(bits) + 0.5) * 0x1p-52;
  return -log(-log(uniform));
}

// An upper bound of gumbel(bits): -log u >= 1 - u, and 1 - u > rest * 2^-52 >= 2^(exponent of rest) * 2^-52.
__device__ __forceinline__ double gumbel_bound(uint64_t bits) {
  union {
    double value;
    uint64_t bits;
  } rest = {static_cast<double>(0xfffffffffffffu - bits)};
  int exponent = static_cast<int>(rest.bits >> 52) - 1023;  // of 0: -1023, far below that of the true noise
  return (52 - exponent) * 0.6931471806 + 1e-9;
}

}  // namespace minillm::cuda
