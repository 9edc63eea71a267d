// The number that each code stands for, as tables: of bf16 for kernels, of floats for single numbers.

#pragma once

#include "types.h"

namespace minillm::cpu {
namespace {

// Codes of 8 bits: e4m3 has 4 bits of exponent (bias 7) and 3 of mantissa, without infinities; 0x7f and 0xff are NaN
// and refused when a matrix is made. Codes of 4 bits: e2m1 has 2 bits of exponent (bias 1) and 1 of mantissa.
constexpr float number_of(Codes codes, int code) {
  auto small_float = [](int bits, int mantissa, int bias) {
    int exponent = bits >> mantissa, fraction = bits & ((1 << mantissa) - 1);
    float value = static_cast<float>(exponent ? fraction + (1 << mantissa) : fraction);
    int power = (exponent ? exponent : 1) - bias - mantissa;
    for (; power > 0; power--) value *= 2;
    for (; power < 0; power++) value /= 2;
    return value;
  };
  switch (codes) {
    case Codes::int8: return static_cast<float>(code - 128);
    case Codes::int4: return static_cast<float>(code - 8);
    case Codes::fp8: return code & 0x80 ? -small_float(code & 0x7f, 3, 7) : small_float(code, 3, 7);
    case Codes::fp4: return code & 8 ? -small_float(code & 7, 1, 1) : small_float(code, 1, 1);
    default: return static_cast<float>(code);
  }
}

// All numbers are exact in bf16: the upper half of a float.
constexpr uint16_t bf16_of(Codes codes, int code) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, number_of(codes, code)) >> 16);
}

template <Codes K>
struct CodesTable {
  alignas(64) uint16_t numbers[32];                // of 4 bits, twice
  alignas(64) uint8_t lower[256], upper[256];      // of 8 bits, byte by byte
  constexpr CodesTable() : numbers(), lower(), upper() {
    for (int i = 0; i < 32; i++) numbers[i] = bf16_of(K, i % 16);
    for (int i = 0; i < 256; i++) {
      lower[i] = static_cast<uint8_t>(bf16_of(K, i));
      upper[i] = static_cast<uint8_t>(bf16_of(K, i) >> 8);
    }
  }
};

template <Codes K>
constexpr CodesTable<K> kTable = {};

}  // namespace
}  // namespace minillm::cpu
