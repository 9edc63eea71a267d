// Codes times activations in int8: sums of whole numbers, which are exact.
//
//     a line, 32 bits for each output, of 8-bit codes          | c0 c2 c1 c3 |
//     AVX-512 VNNI: four products at once, x in that order     | c0 c2 c1 c3 |  x  | x0 x2 x1 x3 |  -> += 4 products
//     otherwise: pairs of 16 bits, codes_int16.h
//
// A code is read as a number from 0 up; what that adds, `kOffset` times the sum of x, is subtracted once for each group.
// With at most kMaxInt8Group inputs in a group every sum is below 2^24, so its float is exact, too. AVX2 has an
// instruction for bytes as well (vpmaddubsw), whose sums of two saturate at 16 bits: it serves codes of 4 bits.

#pragma once

#include "codes_int16.h"
#include "codes_layout.h"

namespace minillm::cpu {
namespace {

#if defined(MINILLM_ISA_AVX512)
template <Codes K>
struct Int8Codes {
  using X = int8_t;
  using Ready = Int8Codes;
  using Sum = vi;
  using State = vu;
  static constexpr bool kRoundsX = true, kFixed = false, kUnpacks = false, kWhole = false, kWholeLines = false;
  static constexpr int kBits = FloatCodes<K>::kBits, kSteps = 8 / kBits, kPerStep = 4;
  static constexpr float kOffset = FloatCodes<K>::kOffset, kUnit = 1;
  static INLINE vu load(const char* line) { return load_as<vu>(line); }
  static INLINE vu value(vu line, int i) { return kBits == 8 ? line : line >> 4 * i & 0x0f0f0f0f; }
  static INLINE vu broadcast(const X* x) { return vu{} + load_as<uint32_t>(x); }
  static INLINE vi mac(vi acc, vu w, vu x) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x); }

  // Stores n numbers in the order of the codes' bytes.
  static INLINE void put(vi x, X* to, int64_t n) {
    const __m128i places = kBits == 8 ? _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15)
                                      : _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    __m128i bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8((__m512i)x), places);
    memcpy(to, &bytes, smaller(n, VL));
  }
};
#else
template <Codes K, int kBits = FloatCodes<K>::kBits>
struct Int8Codes : Int16Codes<K, false> {};
#endif

#if defined(MINILLM_ISA_AVX2)
// Four bits: the eight products of a line have room in 16 bits, 4 * 15 * 127 for each half.
template <Codes K>
struct Int8Codes<K, 4> {
  using X = int8_t;
  using Ready = Int8Codes;
  using Sum = vi;
  static constexpr bool kRoundsX = true, kFixed = false, kUnpacks = false, kWhole = false, kWholeLines = true;
  static constexpr int kSteps = 2, kPerStep = 4;
  static constexpr float kOffset = FloatCodes<K>::kOffset, kUnit = 1;
  struct State { __m256i lower, upper; };
  static INLINE State load(const char* line) {
    const __m256i mask = _mm256_set1_epi8(15);
    __m256i codes = load_as<__m256i>(line);
    return {_mm256_and_si256(codes, mask), _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask)};
  }
  static INLINE vi mac_line(vi acc, State codes, const X* x) {
    auto four = [&](int i) { return _mm256_set1_epi32(load_as<int>(x + 4 * i)); };
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(codes.lower, four(0)), _mm256_maddubs_epi16(codes.upper, four(1)));
    acc += (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    finish(acc);
    return acc;
  }

  // Stores n numbers, a multiple of 8, in the order of the codes' bytes.
  static INLINE void put(vi x, X* to, int64_t) {
    __m256i places = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), turned = _mm256_permutevar8x32_epi32((__m256i)x, places);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(turned), _mm256_extracti128_si256(turned, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
  }
};
#endif

}  // namespace
}  // namespace minillm::cpu
