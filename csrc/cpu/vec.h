// One vector type, three instruction sets.
//
// A `vf` is VL floats in one register: 16 with AVX-512, 8 with AVX2, 4 elsewhere (SSE2, NEON). The kernels are
// written once with this type and compiled once for each instruction set, with its compiler flags. Apart from products,
// transpositions and the unpacking of codes and pairs, only this file names instructions.
//
// Everything here has internal linkage, and no std:: template is used. The linker keeps one copy of an inline
// function; if that were the AVX-512 copy, it would crash a CPU without AVX-512.
//
// The build sets -ffp-contract=off: a fused multiply-add happens only where `fma` is written. Otherwise the compiler
// could fuse in one register tile and not in another, and a row's bits would depend on the number of rows.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(MINILLM_ISA_AVX512) || defined(MINILLM_ISA_AVX2)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace minillm::cpu {
namespace {

#if defined(MINILLM_ISA_AVX512)
constexpr int VL = 16;
#elif defined(MINILLM_ISA_AVX2)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef uint16_t vh __attribute__((vector_size(2 * VL)));

// 16-bit floats are storage types: they are loaded, converted and stored; arithmetic is fp32.
struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

INLINE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class V, class P>
INLINE V load_as(const P* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}

// x in every lane. `vf{} + x` would be an addition, which turns -0.0 into +0.0.
INLINE vf splat(float x) {
#if defined(MINILLM_ISA_AVX512)
  return _mm512_set1_ps(x);
#elif defined(MINILLM_ISA_AVX2)
  return _mm256_set1_ps(x);
#else
  return vf{x, x, x, x};
#endif
}

INLINE vf fma(vf a, vf b, vf c) {
#if defined(MINILLM_ISA_AVX512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(MINILLM_ISA_AVX2)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// Finishes `v` before what is written after it. Otherwise the compiler makes the products of a whole tile first, for which
// AVX2 has too few registers, and accumulators go to memory.
template <class V>
INLINE void finish([[maybe_unused]] V& v) {
#if defined(MINILLM_ISA_AVX2)
  asm volatile("" : "+x"(v));
#endif
}

// Returns `b` if either is NaN. So a NaN in a running maximum `a` is replaced; one in `b` is kept.
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }

// ---- 16-bit conversions, all rounding to nearest, ties to even -------------------------------

// Zero-extends 16 bits to 32. (For the builtin g++ 12 emits six instructions.)
INLINE vu widen_bits(vh h) {
#if defined(MINILLM_ISA_AVX512)
  return (vu)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(MINILLM_ISA_AVX2)
  return (vu)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, vu);
#endif
}

INLINE vf widen_bf16(vh h) { return (vf)(widen_bits(h) << 16); }

INLINE vh narrow_bf16(vf x) {
#if defined(MINILLM_ISA_AVX512)
  return (vh)_mm512_cvtneps_pbh(x);
#else
  vu bits = (vu)x;
  vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  vu nan = (bits >> 16) | 0x40;
  return __builtin_convertvector(x == x ? rounded : nan, vh);
#endif
}

INLINE vf widen_fp16(vh h) {
#if defined(MINILLM_ISA_AVX512)
  return _mm512_cvtph_ps((__m256i)h);
#elif defined(MINILLM_ISA_AVX2)
  return _mm256_cvtph_ps((__m128i)h);
#else
  // Moves the 15 bits of the magnitude into a float's fields and multiplies by 2^112: exact, also for denormals.
  vu wide = widen_bits(h);
  vu magnitude = (wide & 0x7fff) << 13;
  vf value = (vf)magnitude * splat(0x1p112f);
  vu special = magnitude | 0x7f800000;  // infinities and NaN
  vu bits = magnitude >= 0x0f800000 ? special : (vu)value;
  return (vf)(bits | ((wide & 0x8000) << 16));
#endif
}

INLINE vh narrow_fp16(vf x) {
#if defined(MINILLM_ISA_AVX512)
  return (vh)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(MINILLM_ISA_AVX2)
  return (vh)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
#else
  vu bits = (vu)x, magnitude = bits & 0x7fffffff;
  // Normal results: change the exponent's bias and round at bit 13. Small results: adding 0.5 aligns the bits so that
  // the float addition rounds at the right place.
  vu normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  vu small = (vu)((vf)magnitude + splat(0.5f)) - 0x3f000000;
  vu half = magnitude < (113u << 23) ? small : normal;
  half = magnitude >= 0x477ff000 ? (vu{} + 0x7c00) : half;
  half = magnitude > 0x7f800000 ? (vu{} + 0x7e00) : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000), vh);
#endif
}

// ---- loads and stores of VL numbers of any storage type ---------------------------------------

INLINE vf load(const float* p) { return load_as<vf>(p); }
INLINE vf load(const bf16* p) { return widen_bf16(load_as<vh>(p)); }
INLINE vf load(const fp16* p) { return widen_fp16(load_as<vh>(p)); }

INLINE void store(float* p, vf x) { memcpy(p, &x, sizeof(x)); }
INLINE void store(bf16* p, vf x) { vh h = narrow_bf16(x); memcpy(p, &h, sizeof(h)); }
INLINE void store(fp16* p, vf x) { vh h = narrow_fp16(x); memcpy(p, &h, sizeof(h)); }

// x rounded to a storage type.
template <class T>
INLINE vf rounded(vf x) {
  T numbers[VL];
  store(numbers, x);
  return load(numbers);
}

// The first n numbers, n <= VL; the other lanes are zero. The end of a row uses the same vector arithmetic as full
// vectors, so an element's bits do not depend on its place in the row.
template <class T>
INLINE vf load_n(const T* p, int64_t n) {
  if (n >= VL) return load(p);
  T padded[VL] = {};
  memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

template <class T>
INLINE void store_n(T* p, vf x, int64_t n) {
  if (n >= VL) return store(p, x);
  T padded[VL];
  store(padded, x);
  memcpy(p, padded, n * sizeof(T));
}

// The first n lanes of x, and `other` in the others.
INLINE vf first_lanes(vf x, int64_t n, float other) {
  if (n >= VL) return x;
  vi lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
  return lane < static_cast<int>(n) ? x : splat(other);
}

// ---- reductions over the lanes of a register, always in the same order ------------------------

INLINE float sum_lanes(vf x) {
#if defined(MINILLM_ISA_AVX512)
  return _mm512_reduce_add_ps(x);  // the same order as below, in registers
#elif defined(MINILLM_ISA_AVX2)
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_add_ss(t, _mm_movehdup_ps(t))[0];
#else
  float t[VL];
  store(t, x);
  for (int half = VL / 2; half; half /= 2)
    for (int i = 0; i < half; i++) t[i] += t[i + half];
  return t[0];
#endif
}

INLINE float max_lanes(vf x) {
#if defined(MINILLM_ISA_AVX512)
  return _mm512_reduce_max_ps(x);
#elif defined(MINILLM_ISA_AVX2)
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_max_ss(t, _mm_movehdup_ps(t))[0];
#else
  float t[VL];
  store(t, x);
  for (int half = VL / 2; half; half /= 2)
    for (int i = 0; i < half; i++) t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
  return t[0];
#endif
}

// e^x to about 1 ulp: x = n ln2 + r, |r| <= ln2 / 2, e^r by its series up to r^7. Exactly 1 at 0, exactly 0 at minus
// infinity, infinite above 88.8, NaN for NaN.
INLINE vf vexp(vf x) {
#if defined(MINILLM_ISA_AVX512)
  vf clamped = _mm512_min_ps(splat(89.0f), _mm512_max_ps(splat(-104.0f), x));  // NaN in the second operand is kept
  vf n = _mm512_roundscale_ps(clamped * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vf clamped = vmax(splat(-87.3f), x);
  clamped = clamped > 88.3f ? splat(88.3f) : clamped;
  vf shifted = fma(clamped, splat(1.44269504f), magic);
  vf n = shifted - magic;
#endif
  vf r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  vf p = splat(1.0f / 5040);
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
#if defined(MINILLM_ISA_AVX512)
  return _mm512_scalef_ps(p, n);  // p 2^n, with overflow to infinity and underflow to denormals and 0
#else
  vf power = (vf)(((vi)shifted - (vi)magic + 127) << 23);
  vf result = p * power;
  result = x < -87.3f ? vf{} : result;  // just above the smallest normal float
  result = x > 88.3f ? splat(__builtin_inff()) : result;
  return x == x ? result : x;
#endif
}

INLINE vf vabs(vf x) { return (vf)((vu)x & 0x7fffffffu); }
INLINE vf with_sign(vf x, vf sign) { return (vf)((vu)x | ((vu)sign & 0x80000000u)); }

// Numbers of at most `limit` (below 2^22) to integers: nearest, ties to even. Adding 1.5 * 2^23 leaves no bits after the
// point.
INLINE vi nearest(vf x, float limit = 127.0f) {
  const vf magic = splat(12582912.0f);
  vf size = vmax(vf{}, vabs(x));
  return (vi)(with_sign(size > limit ? splat(limit) : size, x) + magic) - (vi)magic;
}

// tanh x. Near 0, where 1 - 2 / (e^2x + 1) would lose its digits, a polynomial. Source: Moshier, Cephes, tanhf.
INLINE vf vtanh(vf x) {
  vf size = vabs(x), z = size * size, p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  vf far = splat(1.0f) - splat(2.0f) / (vexp(size + size) + 1.0f);
  return with_sign(size < 0.625f ? fma(p * z, size, size) : far, x);
}

// The error function, to 1.5e-7. Source: Abramowitz & Stegun, 7.1.26.
INLINE vf verf(vf x) {
  vf size = vabs(x), t = splat(1.0f) / fma(size, splat(0.3275911f), splat(1.0f)), p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  return with_sign(splat(1.0f) - p * t * vexp(-size * size), x);
}

}  // namespace
}  // namespace minillm::cpu
