// Number types of the kernels: float, bfloat16 and float16, and vectors of them that move in one access.
//
//     float      1 | 8 | 23      sign | exponent | fraction
//     bfloat16   1 | 8 |  7      the upper half of a float: same range, about three decimal digits
//     float16    1 | 5 | 10      about four decimal digits, largest value 65504

#pragma once

#include <cstdint>

#ifdef __CUDACC__

using bfloat16 = __nv_bfloat16;
using float16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(float16 x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ float16 from_float<float16>(float x) {
  return __float2half_rn(x);
}

#else

#include <cstring>

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

constexpr int smallest_exponent(bfloat16) { return -126; }  // of a normal number; below it are subnormals
constexpr int smallest_exponent(float16) { return -14; }

inline float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return float_of_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(float16 x) {
  uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 31) return float_of_bits(sign | 0x7F800000u | fraction << 13);
  if (exponent == 0) return float_of_bits(sign | bits_of_float(fraction * 0x1p-24f));  // zero and subnormals
  return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  uint32_t bits = bits_of_float(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};  // rounding could turn a NaN into infinity
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
template <>
inline float16 from_float<float16>(float x) {
  uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
  if (rest > 0x7F800000) return {static_cast<uint16_t>(sign | 0x7E00)};
  if (rest >= 0x477FF000) return {static_cast<uint16_t>(sign | 0x7C00)};  // rounds to 65520 or more: infinity
  if (rest < 0x38800000) {                                                // below 2^-14: subnormal steps of 2^-24
    float steps = float_of_bits(rest) * 0x1p24f + 0x1p23f;                // adding 2^23 rounds to an integer
    return {static_cast<uint16_t>(sign | (bits_of_float(steps) & 0x7FF))};
  }
  return {static_cast<uint16_t>(sign | ((rest - 0x38000000 + 0xFFF + (rest >> 13 & 1)) >> 13))};
}

#endif

// N neighbouring numbers, moved in one access: 8 bfloat16 are 16 bytes, the most a thread can load at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};
