// The register tiles of attention over a cache in int8: scores of 64 keys, and weighted sums of their values.
//
//     scores     acc[row][key] += q[row][d] * codes[d][key]              d = 0, 1, 2, ...     16 keys a group
//     values     acc[row][d]   += weight[row][key] * codes[key][d]       key = 0, 1, 2, ...   16 dims a group
//
// Codes become floats in registers, and are multiplied in fp32. Each output has one accumulator, which goes from first to
// last in every shape of tile, so a row's bits do not depend on the rows beside it (contract C2). FLOPs: two a row and
// code, and one conversion for all rows of a tile. Limit: with few rows converting the codes, with many the products.

#pragma once

#include "tile.h"

namespace minillm::cpu {
namespace {

constexpr int kGroup = 16, kGroups = kKeyTile / kGroup;

// VL codes as floats.
INLINE vf widen_codes(const int8_t* p) {
#if defined(MINILLM_ISA_AVX512)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(MINILLM_ISA_AVX2)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  vi wide;
  for (int i = 0; i < VL; i++) wide[i] = p[i];
  return __builtin_convertvector(wide, vf);
#endif
}

// The codes of one tile. `k` and `v` point to groups of 16 keys: key i of a group is `i` bytes, or `i * v_stride` bytes,
// further on. An absent group points to zeros.
struct Int8Tile {
  const int8_t *k[kGroups], *v[kGroups];
  float k_scale[kKeyTile], v_scale[kKeyTile];
};

// scores[r][16 g ...] = q[r] . codes of group g, for R rows and G groups.
template <int R, int G>
void score_groups(const float* q, int64_t dim, const int8_t* const* k, int64_t stride, float* scores) {
  constexpr int P = G * kParts;
  vf acc[R][P] = {};
  const int8_t* from[G];
#pragma GCC unroll 8
  for (int g = 0; g < G; g++) from[g] = k[g];
  for (int64_t d = 0; d < dim; d++)
    add_products<Singles<float>, R, P>(
        acc, q + d, dim, [&](int p) { return widen_codes(from[p / kParts] + d * stride + p % kParts * VL); });
  store_sums<R, P>(acc, scores, kKeyTile);
}

// out[r][16 g ...] += weights[r] . codes of 16 G dims of a tile's values.
template <int R, int G>
void value_groups(const float* weights, const int8_t* const* v, int64_t first, int64_t stride, float* out, int64_t width) {
  constexpr int P = G * kParts;
  vf acc[R][P];
  load_sums<R, P>(acc, out, width);
  for (int g = 0; g < kGroups; g++) {
    const int8_t* at = v[g] + first;
    for (int i = 0; i < kGroup; i++, at += stride)
      add_products<Singles<float>, R, P>(acc, weights + g * kGroup + i, kKeyTile,
                                         [&](int p) { return widen_codes(at + p * VL); });
  }
  store_sums<R, P>(acc, out, width);
}

template <int R>
void score_rows(const float* q, int64_t dim, const Int8Tile& tile, int64_t stride, float* scores) {
  constexpr int G = groups_for(R);
  for (int g = 0; g < kGroups; g += G) score_groups<R, G>(q, dim, tile.k + g, stride, scores + g * kGroup);
}

template <int R>
void value_rows(const float* weights, const Int8Tile& tile, int64_t stride, float* out, int64_t width) {
  constexpr int G = groups_for(R);
  int64_t d = 0;
  for (; d + G * kGroup <= width; d += G * kGroup) value_groups<R, G>(weights, tile.v, d, stride, out + d, width);
  for (; d < width; d += kGroup) value_groups<R, 1>(weights, tile.v, d, stride, out + d, width);
}

// The functions for 1 to 6 rows.
struct Int8Rows {
  void (*scores)(const float*, int64_t, const Int8Tile&, int64_t, float*);
  void (*values)(const float*, const Int8Tile&, int64_t, float*, int64_t);
};
constexpr Int8Rows kRowsOfCodes[] = {
    {score_rows<1>, value_rows<1>}, {score_rows<2>, value_rows<2>}, {score_rows<3>, value_rows<3>},
#if defined(MINILLM_ISA_AVX512) || defined(MINILLM_ISA_AVX2)
    {score_rows<4>, value_rows<4>}, {score_rows<5>, value_rows<5>}, {score_rows<6>, value_rows<6>},
#endif
};

}  // namespace
}  // namespace minillm::cpu
