// From codes to numbers, in registers. The layout of the codes is in csrc/shared/codes_layout.h.
//
//     a line, 32 bits for each output      | c0 c2 c4 c6 | c1 c3 c5 c7 |  | c0 c2 ...
//     bf16 with AVX-512: `value(i)`        |     c2      |     c3      |  | c2        one shift and one table lookup
//     as floats: `value(k)`                |           c2 as a float   |  | c2        16 or fewer outputs
//     AVX2 and 16-bit activations: pairs of whole numbers, codes_int16.h
//
// A table has the bf16 number of every code, so all codes of one width cost the same: 16 numbers in one register
// (vpermw), 256 in eight (vpermi2b, upper and lower bytes apart). Without tables the bits are converted. A code of
// int8 or int4 is then read as a number from 0 up, and what that adds, `kOffset` times the sum of x, is subtracted
// once for each group.

#pragma once

#include "codes_table.h"
#include "tile.h"

namespace minillm::cpu {
namespace {

// Numbers that were unpacked before, for many rows: a line of 64 bytes is 16 floats, or 16 pairs of bf16.
struct UnpackedFloats {
  using X = float;
  using Sum = vf;
  static constexpr bool kRoundsX = false, kFixed = false, kWholeLines = false;
  static constexpr int kSteps = 1, kPerStep = 1;
  using State = vf;
  static INLINE vf load(const char* line) { return load_as<vf>(line); }
  static INLINE vf value(vf numbers, int) { return numbers; }
  static INLINE vf broadcast(const X* x) { return splat(*x); }
  static INLINE vf mac(vf acc, vf w, vf x) { return fma(w, x, acc); }
};

#if defined(MINILLM_ISA_AVX512)
struct UnpackedPairs {
  using X = bf16;
  using Sum = vf;
  static constexpr bool kRoundsX = false, kFixed = false, kWholeLines = false;
  static constexpr int kSteps = 1, kPerStep = 2;
  using State = __m512bh;
  static INLINE State load(const char* line) { return load_as<State>(line); }
  static INLINE State value(State numbers, int) { return numbers; }
  static INLINE State broadcast(const X* x) { return PairsBf16::broadcast(x); }
  static INLINE vf mac(vf acc, State w, State x) { return PairsBf16::mac(acc, w, x); }
};
#endif

// Codes to floats, VL outputs at a time, for any activations. A line is loaded in `kParts` parts.
//
// A whole number is not shifted down before it is converted: code << s is 2^s times too large, so x is multiplied by
// 2^-s beforehand (`x_factor`), which is exact. This leaves two instructions for each register of codes.
template <Codes K>
struct FloatCodes {
  using X = float;
  using Ready = UnpackedFloats;
  using Sum = vf;
  static constexpr bool kRoundsX = false, kFixed = false, kUnpacks = true, kWholeLines = false;
  static constexpr int kBits = K == Codes::int8 || K == Codes::fp8 ? 8 : 4;
  static constexpr int kSteps = 32 / kBits, kPerStep = 1;
  static constexpr float kOffset = K == Codes::int8 ? 128 : K == Codes::int4 ? 8 : 0;
  static constexpr bool kWhole = K != Codes::fp8 && K != Codes::fp4;
  struct State { vu even, odd; };  // codes of even inputs in the lower halves, and of odd ones
  static INLINE State load(const char* line) {
    vu codes = load_as<vu>(line);
    return {codes, codes >> 16};
  }
  static INLINE vf broadcast(const X* x) { return splat(*x); }
  static INLINE vf mac(vf acc, vf w, vf x) {
    acc = fma(w, x, acc);
    finish(acc);
    return acc;
  }
  static constexpr float x_factor(int64_t k) { return kWhole ? 1.0f / (1 << shift(k)) : 1.0f; }
  static constexpr int shift(int64_t k) { return static_cast<int>(k % kSteps >> 1) * kBits; }

  // The number of code k, plus kOffset, divided by x_factor.
  static INLINE vf value(const State& s, int k) {
    constexpr uint32_t mask = (1u << kBits) - 1;
    if constexpr (kWhole) return __builtin_convertvector((vi)((k & 1 ? s.odd : s.even) & mask << shift(k)), vf);
    // A small float, moved to the sign and the lowest bits of the exponent, with the highest of the mantissa: a float that is
    // 2^120 (fp4: 2^126) times too small.
    vi top = (vi)(s.even << (32 - kBits - shift(k) - (k & 1) * 16));
    if constexpr (K == Codes::fp8) return (vf)(top >> 4 & (vi{} + static_cast<int32_t>(0x87f00000u))) * splat(0x1p120f);
    return (vf)(top >> 6 & (vi{} + static_cast<int32_t>(0x81c00000u))) * splat(0x1p126f);
  }
};

#if defined(MINILLM_ISA_AVX512)
// Codes to pairs of bf16, for bf16 activations.
struct Pairs {
  using X = bf16;
  using Ready = UnpackedPairs;
  using Sum = vf;
  static constexpr bool kRoundsX = false, kFixed = false, kUnpacks = true, kWholeLines = false;
  static constexpr int kPerStep = 2;
  static constexpr float kOffset = 0;
  static constexpr bool kWhole = false;
  static INLINE __m512bh broadcast(const X* x) { return PairsBf16::broadcast(x); }
  static INLINE vf mac(vf acc, __m512bh w, __m512bh x) { return PairsBf16::mac(acc, w, x); }
};

template <Codes K, int kBits>
struct PairCodes;

template <Codes K>
struct PairCodes<K, 4> : Pairs {
  static constexpr int kSteps = 4;
  using State = __m512i;
  static INLINE State load(const char* line) { return _mm512_loadu_si512(line); }
  static INLINE __m512bh value(State line, int i) {
    // An index has 5 bits; the table has its 16 numbers twice, so that the fifth does not matter.
    const __m512i table = _mm512_loadu_si512(kTable<K>.numbers);
    return (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(line, 4 * i), table);
  }
};

template <Codes K>
struct PairCodes<K, 8> : Pairs {
  static constexpr int kSteps = 2;
  struct State { __m512i lower, upper; };
  static INLINE State load(const char* line) {
    __m512i codes = _mm512_loadu_si512(line);
    return {look_up(codes, kTable<K>.lower), look_up(codes, kTable<K>.upper)};
  }
  static INLINE __m512i look_up(__m512i codes, const uint8_t* table) {
    auto part = [&](int i) { return _mm512_loadu_si512(table + 64 * i); };
    __m512i first = _mm512_permutex2var_epi8(part(0), codes, part(1));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), first, _mm512_permutex2var_epi8(part(2), codes, part(3)));
  }
  static INLINE __m512bh value(const State& s, int i) {
    const __m512i low = _mm512_set1_epi16(0xff);
    if (i == 0) return (__m512bh)_mm512_or_si512(_mm512_and_si512(s.lower, low), _mm512_slli_epi16(s.upper, 8));
    return (__m512bh)_mm512_or_si512(_mm512_srli_epi16(s.lower, 8), _mm512_andnot_si512(low, s.upper));
  }
};
#endif

}  // namespace
}  // namespace minillm::cpu
