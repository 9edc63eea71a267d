// One tile of 64 keys and values, read through the block table and packed in the layout of weights.
//
//     pages of the sequence          keys   [64 / 16][head_dim / 2][16][2]    S = Q K^T: 16 keys a register
//     slot slot slot slot ...  -->   values [head_dim / 16][64 / 2][16][2]    O += P V:  16 dims a register
//
// (For bf16. fp32 and fp16 are packed as fp32, without pairs.) With this layout the register tile (tile.h) that
// multiplies weights computes attention too. Bytes: the tile is read once for all rows of a task. Limit: with one query
// row packing takes two thirds of the time, with many rows almost none. So where few rows share a tile,
// attention_in_place.h packs only the keys, as fp32, and reads values where they are.
//
// Slots that no row of the task sees are packed as zeros and never read: they may hold any bits.

#pragma once

#include "kernels.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

#if !defined(MINILLM_ISA_AVX512)
// Four numbers of 32 bits from each of VL rows: rows i and, with AVX2, 4 + i are the halves of register i.
INLINE void load_quads(const uint32_t* const* from, int64_t column, vu r[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
#if defined(MINILLM_ISA_AVX2)
    __m256i low = _mm256_castsi128_si256(load_as<__m128i>(from[i] + column));
    r[i] = (vu)_mm256_inserti128_si256(low, load_as<__m128i>(from[4 + i] + column), 1);
#else
    r[i] = load_as<vu>(from[i] + column);
#endif
  }
}

// Transposes 4 x 4 numbers in each 128 bits: afterwards register i is column i of VL rows.
INLINE void transpose_quads(vu r[4]) {
#if defined(MINILLM_ISA_AVX2)
  __m256i low01 = _mm256_unpacklo_epi32((__m256i)r[0], (__m256i)r[1]);
  __m256i high01 = _mm256_unpackhi_epi32((__m256i)r[0], (__m256i)r[1]);
  __m256i low23 = _mm256_unpacklo_epi32((__m256i)r[2], (__m256i)r[3]);
  __m256i high23 = _mm256_unpackhi_epi32((__m256i)r[2], (__m256i)r[3]);
  r[0] = (vu)_mm256_unpacklo_epi64(low01, low23);
  r[1] = (vu)_mm256_unpackhi_epi64(low01, low23);
  r[2] = (vu)_mm256_unpacklo_epi64(high01, high23);
  r[3] = (vu)_mm256_unpackhi_epi64(high01, high23);
#else
  vu a = r[0], b = r[1], c = r[2], d = r[3];
  r[0] = vu{a[0], b[0], c[0], d[0]};
  r[1] = vu{a[1], b[1], c[1], d[1]};
  r[2] = vu{a[2], b[2], c[2], d[2]};
  r[3] = vu{a[3], b[3], c[3], d[3]};
#endif
}
#endif

// Transposes 16 x 16 numbers of 32 bits: to[16 i + j] = from[j][i], i, j < 16.
INLINE void transpose16(const uint32_t* const from[16], uint32_t* to) {
#if defined(MINILLM_ISA_AVX512)
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from[i]);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  // r[4 q + c] now holds, in each 128-bit lane l, column 4 l + c of rows 4 q .. 4 q + 3.
  for (int c = 0; c < 4; c++) {
    __m512i low01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x44), high01 = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xee);
    __m512i low23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x44);
    __m512i high23 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xee);
    _mm512_storeu_si512(to + 16 * c, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(to + 16 * (4 + c), _mm512_shuffle_i32x4(low01, low23, 0xdd));
    _mm512_storeu_si512(to + 16 * (8 + c), _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(to + 16 * (12 + c), _mm512_shuffle_i32x4(high01, high23, 0xdd));
  }
#else
  for (int row = 0; row < 16; row += VL)
    for (int column = 0; column < 16; column += 4) {
      vu r[4];
      load_quads(from + row, column, r);
      transpose_quads(r);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) memcpy(to + 16 * (column + i) + row, &r[i], sizeof(vu));
    }
#endif
}

// The 64 slots of a tile: pointers to their first rows, in K and in V. An absent key points to a slot of zeros.
template <class T>
struct TileSlots {
  const T *k[kKeyTile], *v[kKeyTile];

  TileSlots() = default;
  TileSlots(const AttentionArgs& a, int64_t seq, int64_t first, int64_t count, const T* zeros) {
    const int32_t* table = a.batch.block_table + seq * a.batch.table_stride;
    int64_t block_size = a.heads.block_size, slot_size = a.heads.num_kv_heads * a.heads.head_dim, i = 0;
    for (count = smaller(count, kKeyTile); i < count;) {
      int64_t inside = (first + i) % block_size, end = smaller(i + block_size - inside, count);
      int64_t at = (table[(first + i) / block_size] * block_size + inside) * slot_size;
      for (; i < end; i++, at += slot_size) {
        k[i] = static_cast<const T*>(a.k_cache) + at;
        v[i] = static_cast<const T*>(a.v_cache) + at;
      }
    }
    for (; i < kKeyTile; i++) k[i] = v[i] = zeros;
  }
};

// The rows of one head in the slots of a tile.
template <class T>
struct TileRows {
  const T* const* slots;
  int64_t offset;
  INLINE const T* operator[](int64_t key) const { return slots[key] + offset; }
};

// Prefetches one row of the next tile. Rows are short and far apart, so the hardware prefetcher does not find them.
// A core can have only a few loads in flight, so rows are prefetched while the current tile is packed.
template <class T>
INLINE void prefetch(const T* row, int64_t dim) {
  for (int64_t byte = 0; byte < dim * int64_t{sizeof(T)}; byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, 2);  // into L2
}

// ---- bf16: pairs -------------------------------------------------------------------------------

INLINE void pack_keys(TileRows<bf16> rows, TileRows<bf16> next, int64_t dim, bf16* packed) {
  int64_t pairs = dim / 2;
  for (int64_t b = 0; b < kKeyTile / 16; b++) {
    for (int i = 0; i < 16; i++) prefetch(next[16 * b + i], dim);
    uint32_t* to = reinterpret_cast<uint32_t*>(packed + b * 16 * dim);
    int64_t p = 0;
    for (; p + 16 <= pairs; p += 16) {
      const uint32_t* from[16];
      for (int i = 0; i < 16; i++) from[i] = reinterpret_cast<const uint32_t*>(rows[16 * b + i] + 2 * p);
      transpose16(from, to + 16 * p);
    }
    for (; p < pairs; p++)
      for (int i = 0; i < 16; i++) to[16 * p + i] = load_as<uint32_t>(rows[16 * b + i] + 2 * p);
  }
}

// The bits of the first n numbers, n <= VL; the other lanes are zero.
INLINE vh load_bits(const bf16* p, int64_t n) {
  if (n >= VL) return load_as<vh>(p);
  vh bits = {};
  memcpy(&bits, p, n * sizeof(bf16));
  return bits;
}

INLINE void pack_values(TileRows<bf16> rows, TileRows<bf16> next, int64_t dim, bf16* packed) {
  for (int64_t d = 0; d < dim; d += 16)
    for (int64_t pair = 0; pair < kKeyTile / 2; pair++) {
      if (!d) prefetch(next[2 * pair], dim), prefetch(next[2 * pair + 1], dim);
      for (int64_t i = 0; i < 16; i += VL) {
        // Interleaves two rows of 16-bit numbers: one in the low half of each 32 bits, one in the high half.
        int64_t n = larger(0, dim - d - i);
        vh low = load_bits(rows[2 * pair] + d + i, n), high = load_bits(rows[2 * pair + 1] + d + i, n);
        vu both = widen_bits(low) | (widen_bits(high) << 16);
        memcpy(packed + ((d / 16 * kKeyTile / 2 + pair) * 16 + i) * 2, &both, sizeof(both));
      }
    }
}

// ---- fp32 and fp16: singles, as fp32 -----------------------------------------------------------

template <class T>
INLINE void pack_keys(TileRows<T> rows, TileRows<T> next, int64_t dim, float* packed) {
  for (int64_t b = 0; b < kKeyTile / 16; b++) {
    for (int i = 0; i < 16; i++) prefetch(next[16 * b + i], dim);
    for (int64_t d = 0; d < dim; d += 16) {
      alignas(64) float wide[16][16], turned[16][16];
      const uint32_t* from[16];
      for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j += VL)
          store(wide[i] + j, d + j < dim ? load_n(rows[16 * b + i] + d + j, dim - d - j) : vf{});
        from[i] = reinterpret_cast<const uint32_t*>(wide[i]);
      }
      float* to = packed + (b * dim + d) * 16;
      if (d + 16 <= dim) {
        transpose16(from, reinterpret_cast<uint32_t*>(to));
      } else {
        transpose16(from, reinterpret_cast<uint32_t*>(turned[0]));
        memcpy(to, turned, (dim - d) * 16 * sizeof(float));
      }
    }
  }
}

template <class T>
INLINE void pack_values(TileRows<T> rows, TileRows<T> next, int64_t dim, float* packed) {
  for (int64_t d = 0; d < dim; d += 16)
    for (int64_t key = 0; key < kKeyTile; key++) {
      if (!d) prefetch(next[key], dim);
      for (int64_t i = 0; i < 16; i += VL)
        store(packed + (d / 16 * kKeyTile + key) * 16 + i,
              d + i < dim ? load_n(rows[key] + d + i, dim - d - i) : vf{});
    }
}

// ---- keys for attention_in_place.h, where head_dim is a multiple of 32 --------------------------

#if defined(MINILLM_ISA_AVX512)
template <class T, class W>
INLINE void turn_keys(TileRows<T> rows, TileRows<T> next, int64_t dim, W* packed) {
  pack_keys(rows, next, dim, packed);
}
#else
// Eight dims of VL keys as floats: to[16 i + j] = from[j][i], i < 8, j < VL.
INLINE void turn_dims(const bf16* const* from, float* to) {
  vu r[4];
  load_quads(reinterpret_cast<const uint32_t* const*>(from), 0, r);
  transpose_quads(r);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    store(to + 2 * i * 16, (vf)(r[i] << 16));
    store(to + (2 * i + 1) * 16, (vf)(r[i] & 0xffff0000u));
  }
}

INLINE void load_floats(const float* const* from, int64_t d, vu r[4]) {
  load_quads(reinterpret_cast<const uint32_t* const*>(from), d, r);
}

INLINE void load_floats(const fp16* const* from, int64_t d, vu r[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
#if defined(MINILLM_ISA_AVX2)
    __m128i low = _mm_loadu_si64(from[i] + d), high = _mm_loadu_si64(from[4 + i] + d);
    r[i] = (vu)_mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
#else
    r[i] = (vu)load(from[i] + d);
#endif
  }
}

template <class T>
INLINE void turn_dims(const T* const* from, float* to) {
#pragma GCC unroll 2
  for (int d = 0; d < 8; d += 4) {
    vu r[4];
    load_floats(from, d, r);
    transpose_quads(r);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) store(to + 16 * (d + i), (vf)r[i]);
  }
}

// Keys as floats: [64 / 16][head_dim][16].
template <class T>
INLINE void turn_keys(TileRows<T> rows, TileRows<T> next, int64_t dim, float* packed) {
  for (int64_t first = 0; first < kKeyTile; first += VL) {
    if (first % 16 == 0)  // 16 rows at a time are 10 % faster than 8
      for (int64_t i = first; i < first + 16; i++) prefetch(next[i], dim);
    const T* from[VL];
#pragma GCC unroll 8
    for (int i = 0; i < VL; i++) from[i] = rows[first + i];
    float* to = packed + first / 16 * 16 * dim + first % 16;
    for (int64_t d = 0; d < dim; d += 8, to += 8 * 16) {
      turn_dims(from, to);
#pragma GCC unroll 8
      for (int i = 0; i < VL; i++) from[i] += 8;
    }
  }
}
#endif

}  // namespace
}  // namespace minillm::cpu
