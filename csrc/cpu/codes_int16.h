// Codes as whole numbers of 16 bits, in pairs: two products and their sum in one instruction, exact.
//
//     a line, 32 bits for each output, of 8-bit codes        | c0 c2 | c1 c3 |
//     value 0 and 1: pairs of 16 bits, two products each     |  c0   |  c1   |    x  | x0  | x1  |    -> += 2 products
//                                                            |  c2   |  c3   |    x  | x2  | x3  |    -> += 2 products
//
// The activations are whole numbers, too. They were rounded to int8 (codes_int8.h), or they are fixed-point numbers of 16
// bits: x = scale * code, with a power of two for each row and each kFixedSegment inputs or fewer. AVX2 multiplies bf16 and
// fp16 activations this way: it has no instruction for these types. As floats, 8 weights and a row take three instructions;
// as pairs, 16 weights take four (csrc/README.md). What is rounded, here of bf16, which has 8 bits (fp16 has 11):
//
//     largest number of the segment   | 1 m m m m m m m 0 0 0 0 0 0 0 |    exact
//     2^-7 of it                      | 0 0 0 0 0 0 0 1 m m m m m m m |    exact
//     2^-10 of it                     | 0 0 0 0 0 0 0 0 0 0 1 m m m m | m m m    rounded: the last bit of a code is 1/128
//                                                                               of the last bit of the largest number
//
// A code is read as a number from 0 up; what that adds, `kOffset` times the sum of x, is subtracted once for each partial sum.

#pragma once

#include "codes.h"

namespace minillm::cpu {
namespace {

// The most inputs that share a scale of fixed-point numbers: 128 products of at most 255 * 2^15 are below 2^31.
constexpr int64_t kFixedSegment = 128;

template <bool kIsFixed>
struct Int16Pairs {
  using X = int16_t;
  using Sum = vi;
  static constexpr bool kRoundsX = true, kFixed = kIsFixed, kWhole = false, kWholeLines = false;
  static constexpr int kPerStep = 2;
  static INLINE vi broadcast(const X* x) { return vi{} + load_as<int32_t>(x); }
  static INLINE vi mac(vi acc, vi w, vi x) {
#if defined(MINILLM_ISA_AVX2)
    acc += (vi)_mm256_madd_epi16((__m256i)w, (__m256i)x);
    finish(acc);
    return acc;
#else
    return acc + (w & 0xffff) * (x << 16 >> 16) + (w >> 16) * (x >> 16);
#endif
  }
  static INLINE void put(vi x, X* to, int64_t n) {
    typedef int16_t narrow __attribute__((vector_size(2 * VL)));
    narrow numbers = __builtin_convertvector(x, narrow);
    memcpy(to, &numbers, smaller(n, VL) * sizeof(X));
  }
};

// Codes that were unpacked before, for many rows: a line of 64 bytes is 16 pairs.
template <bool kIsFixed>
struct UnpackedInt16 : Int16Pairs<kIsFixed> {
  using State = vi;
  static constexpr int kSteps = 1;
  static INLINE vi load(const char* line) { return load_as<vi>(line); }
  static INLINE vi value(vi pairs, int) { return pairs; }
};

template <Codes K, bool kIsFixed>
struct Int16Codes : Int16Pairs<kIsFixed> {
  using Ready = UnpackedInt16<kIsFixed>;
  using State = vu;
  static constexpr bool kUnpacks = true;
  static constexpr int kBits = FloatCodes<K>::kBits, kSteps = 16 / kBits;
  static constexpr float kOffset = FloatCodes<K>::kOffset, kUnit = 1;
  static INLINE vu load(const char* line) { return load_as<vu>(line); }
  static INLINE vi value(vu line, int i) { return (vi)(line >> kBits * i & (kBits == 8 ? 0x00ff00ffu : 0x000f000fu)); }
};

#if defined(MINILLM_ISA_AVX2)
// Twice the numbers of fp4 are whole: 0 1 2 3 4 6 8 12 and their negatives. A table of bytes has them plus 12.
template <>
struct Int16Codes<Codes::fp4, true> : Int16Pairs<true> {
  using Ready = UnpackedInt16<true>;
  static constexpr bool kUnpacks = true;
  static constexpr int kSteps = 4;
  static constexpr float kOffset = 12, kUnit = 0.5;
  struct State { __m256i lower, upper; };  // | c0 c4 | c1 c5 | and | c2 c6 | c3 c7 |
  static INLINE State load(const char* line) {
    const __m256i mask = _mm256_set1_epi8(15), codes = load_as<__m256i>(line);
    const __m256i numbers = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return {_mm256_shuffle_epi8(numbers, _mm256_and_si256(codes, mask)),
            _mm256_shuffle_epi8(numbers, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask))};
  }
  static INLINE vi value(const State& s, int i) {
    __m256i codes = i & 1 ? s.upper : s.lower;
    return (vi)(i < 2 ? _mm256_and_si256(codes, _mm256_set1_epi16(0xff)) : _mm256_srli_epi16(codes, 8));
  }
};
#endif

}  // namespace
}  // namespace minillm::cpu
