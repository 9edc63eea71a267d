// What a tensor core computes (tensor_core.cpp), for mma and wgmma. Compiled without instrumentation: the numbers are
// in registers, and a call for each of them would take longer than the sums.

#pragma once

#include <cstdint>

namespace simt {

// A number of a 16-bit type, or a float: significand * 2^(exponent - 23).
struct Factor {
  int32_t significand;  // with its sign
  int exponent;
  float number;
};

// `smallest_exponent` is that of the type's normal numbers.
Factor factor_of(float x, int smallest_exponent);

// c + a[0] * b[0] + ... + a[15] * b[15].
float tensor_core_sum(const Factor* a, const Factor* b, float c);

}  // namespace simt
