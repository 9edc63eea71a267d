// One tile of 64 keys and values, read through the block table and packed in the layout of weights.
//
//     pages of the sequence          keys   [64 / 16][head_dim / 2][16][2]    S = Q K^T: 16 keys a register
//     slot slot slot slot ...  -->   values [head_dim / 16][64 / 2][16][2]    O += P V:  16 dims a register
//
// (For bf16. fp32 and fp16 are packed as fp32, without pairs.) With this layout the register tile (tile.h) that
// multiplies weights computes attention too. Bytes: the tile is read once for all rows of a task. Limit: the 16 x 16
// transposition of keys takes a quarter of the time with one query row, and almost none with many rows.
//
// Slots that no row of the task sees are packed as zeros and never read: they may hold any bits.

#pragma once

#include "kernels.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

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
  for (int j = 0; j < 16; j++)
    for (int i = 0; i < 16; i++) to[16 * i + j] = from[j][i];
#endif
}

// The 64 rows of a tile: pointers into K and V. An absent key points to a row of zeros.
template <class T>
struct TileRows {
  const T *k[kKeyTile], *v[kKeyTile];

  TileRows() = default;
  TileRows(const AttentionArgs& a, int64_t seq, int64_t kv_head, int64_t first, int64_t count, const T* zeros) {
    const int32_t* table = a.batch.block_table + seq * a.batch.table_stride;
    int64_t block_size = a.heads.block_size, dim = a.heads.head_dim, slot_size = a.heads.num_kv_heads * dim;
    int64_t block = first / block_size, inside = first % block_size;
    for (int64_t i = 0; i < count; i++) {
      int64_t slot = table[block] * block_size + inside;
      k[i] = static_cast<const T*>(a.k_cache) + slot * slot_size + kv_head * dim;
      v[i] = static_cast<const T*>(a.v_cache) + slot * slot_size + kv_head * dim;
      if (++inside == block_size) block++, inside = 0;
    }
    for (int64_t i = larger(count, 0); i < kKeyTile; i++) k[i] = v[i] = zeros;
  }
};

// Prefetches one row of the next tile. Rows are short and far apart, so the hardware prefetcher does not find them.
// A core can have only a few loads in flight, so rows are prefetched one by one while the current tile is packed.
template <class T>
INLINE void prefetch(const T* row, int64_t dim) {
  for (int64_t byte = 0; byte < dim * int64_t{sizeof(T)}; byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, 2);  // into L2
}

// ---- bf16: pairs -------------------------------------------------------------------------------

INLINE void pack_keys(const TileRows<bf16>& rows, const TileRows<bf16>& next, int64_t dim, bf16* packed) {
  int64_t pairs = dim / 2;
  for (int64_t b = 0; b < kKeyTile / 16; b++) {
    for (int i = 0; i < 16; i++) prefetch(next.k[16 * b + i], dim);
    uint32_t* to = reinterpret_cast<uint32_t*>(packed + b * 16 * dim);
    int64_t p = 0;
    for (; p + 16 <= pairs; p += 16) {
      const uint32_t* from[16];
      for (int i = 0; i < 16; i++) from[i] = reinterpret_cast<const uint32_t*>(rows.k[16 * b + i] + 2 * p);
      transpose16(from, to + 16 * p);
    }
    for (; p < pairs; p++)
      for (int i = 0; i < 16; i++) to[16 * p + i] = load_as<uint32_t>(rows.k[16 * b + i] + 2 * p);
  }
}

// The bits of the first n numbers, n <= VL; the other lanes are zero.
INLINE vh load_bits(const bf16* p, int64_t n) {
  if (n >= VL) return load_as<vh>(p);
  vh bits = {};
  memcpy(&bits, p, n * sizeof(bf16));
  return bits;
}

INLINE void pack_values(const TileRows<bf16>& rows, const TileRows<bf16>& next, int64_t dim, bf16* packed) {
  for (int64_t d = 0; d < dim; d += 16)
    for (int64_t pair = 0; pair < kKeyTile / 2; pair++) {
      if (!d) prefetch(next.v[2 * pair], dim), prefetch(next.v[2 * pair + 1], dim);
      for (int64_t i = 0; i < 16; i += VL) {
        // Interleaves two rows of 16-bit numbers: one in the low half of each 32 bits, one in the high half.
        int64_t n = larger(0, dim - d - i);
        vh low = load_bits(rows.v[2 * pair] + d + i, n), high = load_bits(rows.v[2 * pair + 1] + d + i, n);
        vu both = widen_bits(low) | (widen_bits(high) << 16);
        memcpy(packed + ((d / 16 * kKeyTile / 2 + pair) * 16 + i) * 2, &both, sizeof(both));
      }
    }
}

// ---- fp32 and fp16: singles, as fp32 -----------------------------------------------------------

template <class T>
INLINE void pack_keys(const TileRows<T>& rows, const TileRows<T>& next, int64_t dim, float* packed) {
  for (int64_t b = 0; b < kKeyTile / 16; b++) {
    for (int i = 0; i < 16; i++) prefetch(next.k[16 * b + i], dim);
    for (int64_t d = 0; d < dim; d += 16) {
      alignas(64) float wide[16][16], turned[16][16];
      const uint32_t* from[16];
      for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j += VL)
          store(wide[i] + j, d + j < dim ? load_n(rows.k[16 * b + i] + d + j, dim - d - j) : vf{});
        from[i] = reinterpret_cast<const uint32_t*>(wide[i]);
      }
      transpose16(from, reinterpret_cast<uint32_t*>(turned[0]));
      memcpy(packed + (b * dim + d) * 16, turned, smaller(16, dim - d) * 16 * sizeof(float));
    }
  }
}

template <class T>
INLINE void pack_values(const TileRows<T>& rows, const TileRows<T>& next, int64_t dim, float* packed) {
  for (int64_t d = 0; d < dim; d += 16)
    for (int64_t key = 0; key < kKeyTile; key++) {
      if (!d) prefetch(next.v[key], dim);
      for (int64_t i = 0; i < 16; i += VL)
        store(packed + (d / 16 * kKeyTile + key) * 16 + i,
              d + i < dim ? load_n(rows.v[key] + d + i, dim - d - i) : vf{});
    }
}

}  // namespace
}  // namespace minillm::cpu
