// The rows of x as the products of quantised matrices read them.
//
//     x row, [in]  -->  in the order of the codes, zeros up to a whole line of codes  -->  as floats or bf16, and the sum
//                                                                                         of each group
//                                                                                    -->  or rounded to int8 or fixed-point
//                                                                                         numbers: codes, and scale and sum
//                                                                                         of each segment

#pragma once

#include "codes_int8.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

template <class T, class X>
void copy_row(const T* x, int64_t in, const int32_t* order, X* to, int64_t stride) {
  if (order) {
    for (int64_t k = 0; k < stride; k++) {
      T number = k < in ? x[order[k]] : T{};
      T padded[VL] = {number};
      store_n(to + k, load(padded), 1);
    }
    return;
  }
  for (int64_t k = 0; k < stride; k += VL) store_n(to + k, load_n(x + k, smaller(larger(in - k, 0), VL)), stride - k);
}

template <class X>
float sum_of(const X* x, int64_t count) {
  vf sum = {};
  for (int64_t k = 0; k < count; k += VL) sum = sum + load_n(x + k, count - k);
  return sum_lanes(sum);
}

// Multiplies each number by the factor of its place in a line.
template <class M>
void scale_row(float* x, int64_t stride) {
  alignas(64) float factors[16];  // the factors repeat after 4 or 8
  for (int k = 0; k < 16; k++) factors[k] = M::x_factor(k);
  for (int64_t k = 0; k < stride; k += VL) store_n(x + k, load_n(x + k, stride - k) * load(factors + k % 16), stride - k);
}

// The scale of fixed-point numbers of 16 bits (codes_int16.h): the power of two that gives the largest number 15 bits.
inline float fixed_scale(float largest) {
  const uint32_t exponent = load_as<uint32_t>(&largest) >> 23, lowest = 15;
  const uint32_t bits = ((exponent > lowest ? exponent : lowest) - 14) << 23;
  return load_as<float>(&bits);
}

// Rounds numbers to int8 or to fixed-point numbers of 16 bits: x = scale * code. A group with NaN or infinity gets the scale
// NaN, so that its row's results are NaN and no other's. Writes the codes; `sum` is that of the codes.
template <class M>
void round_group(const float* x, int64_t count, typename M::X* codes, float* scale, float* sum) {
  constexpr float limit = M::kFixed ? 32767 : 127;
  vf highest = {}, zeros = {};
  for (int64_t k = 0; k < count; k += VL) {
    vf value = load_n(x + k, count - k);
    highest = vmax(highest, vabs(value));
    zeros = fma(value, vf{}, zeros);
  }
  const float largest = max_lanes(highest);
  *scale = sum_lanes(zeros) != 0 ? __builtin_nanf("") : M::kFixed ? fixed_scale(largest) : largest / limit;
  vi total = {};
  for (int64_t k = 0; k < count; k += VL) {
    vi code = {};
    if (*scale > 0) code = nearest(load_n(x + k, count - k) / *scale, limit);
    total += code;
    M::put(code, codes + k, count - k);
  }
  *sum = sum_lanes(__builtin_convertvector(total, vf));
}

}  // namespace
}  // namespace minillm::cpu
