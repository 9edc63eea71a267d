// The register tile: the inner loop of all matrix products of this library.
//
//              16 outputs     16 outputs
//             +----------+   +----------+        W: packed, one register = 16 outputs x one step
//    x row 0  | acc 0,0  |   | acc 0,1  |        x: one step of a row, broadcast
//    x row 1  | acc 1,0  |   | acc 1,1  |
//      ...                                       acc[r][c] += x[r][k] * W[c][k],  k = 0, 1, 2, ...
//
// Each output has one accumulator, which goes over k from first to last in every shape of tile. So a row's bits do
// not depend on the number of rows or on its place among them: contract C2 costs nothing. The shape of the tile only
// decides how often a loaded register is reused. With few rows the limit is reading W: many columns give several
// streams of loads. With many rows the limit is arithmetic: each loaded W is reused for many rows. Limit: registers
// for the accumulators, W and x; there are 32 with AVX-512 and 16 otherwise.
//
// bf16 is processed in pairs: vdpbf16ps multiplies two neighbours along k and adds both products to the accumulator.
// If x is fp32, a register of pairs is processed in two rounds, first its even numbers, then its odd numbers:
//
//    packed     o3 e3 o2 e2 o1 e1 o0 e0        16 bits each; a bf16 is the upper half of the float it stands for
//    round 0    e3 0  e2 0  e1 0  e0 0         shifted: 16 floats, multiplied with x[k]
//    round 1    o3 0  o2 0  o1 0  o0 0         masked:  16 floats, multiplied with x[k + 1]
//
// These are the values of the fp32 weights, in the same order, with one fma each. So the result has the same bits as
// with fp32 weights, for half the bytes.

#pragma once

#include "kernels.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

constexpr int kParts = 16 / VL;  // registers per 16 outputs

// How each type of weights is read and multiplied. `X` is the type of the activations. A register of weights holds
// `kStep` steps along k and is multiplied in `kRounds` rounds.
struct PairsBf16 {
  using W = bf16;
  using X = bf16;
  static constexpr int kStep = 2, kRounds = 1;
#if defined(MINILLM_ISA_AVX512)
  using Reg = __m512bh;
  static INLINE Reg weights(const W* w) { return load_as<Reg>(w); }
  static INLINE Reg broadcast(const X* x) { return (Reg)_mm512_set1_epi32(load_as<int>(x)); }
  static INLINE vf mac(vf acc, Reg w, Reg x) { return _mm512_dpbf16_ps(acc, w, x); }
#else
  struct Reg { vf even, odd; };
  static INLINE Reg split(vu pairs) { return {(vf)(pairs << 16), (vf)(pairs & 0xffff0000u)}; }
  static INLINE Reg weights(const W* w) { return split(load_as<vu>(w)); }
  static INLINE Reg broadcast(const X* x) { return split(vu{} + load_as<uint32_t>(x)); }
  static INLINE vf mac(vf acc, Reg w, Reg x) { return fma(w.odd, x.odd, fma(w.even, x.even, acc)); }
#endif
  static INLINE Reg round(Reg w, int) { return w; }
};

struct PairsWithFloat {
  using W = bf16;
  using X = float;
  static constexpr int kStep = 2, kRounds = 2;
  // Only a pointer: each round loads the weights again. Keeping them would take registers from the accumulators.
  static INLINE const W* weights(const W* w) { return w; }
  static INLINE vf round(const W* w, int i) {
    asm volatile("" : "+r"(w));  // prevents the compiler from keeping them
    vu pairs = load_as<vu>(w);
    return (vf)(i ? pairs & 0xffff0000u : pairs << 16);
  }
  static INLINE vf broadcast(const X* x) { return splat(*x); }
  static INLINE vf mac(vf acc, vf w, vf x) { return fma(w, x, acc); }
};

template <class Storage>
struct Singles {
  using W = Storage;
  using X = float;
  static constexpr int kStep = 1, kRounds = 1;
  static INLINE vf weights(const W* w) { return load(w); }
  static INLINE vf round(vf w, int) { return w; }
  static INLINE vf broadcast(const X* x) { return splat(*x); }
  static INLINE vf mac(vf acc, vf w, vf x) { return fma(w, x, acc); }
};

// out[r][16 c ...] = x[r] . W[c], or += if `accumulate`, for R rows and C blocks of 16 outputs.
//
// A load from memory takes about 100 ns, and a core reaches the memory bandwidth only with a few dozen loads in
// flight. So each stream of weights is prefetched some steps ahead. The last steps of a tile prefetch the first steps
// of the next tile, whose weights begin `next_offset` elements later. Distances of 4 to 48 steps and of a whole tile
// were measured. With 1 to 4 rows 16 to 32 steps are best: at 1 row 2 to 9 % faster than the hardware prefetcher
// alone. With more rows there is more arithmetic between two loads, and a whole tile is best.
constexpr int64_t kPrefetchSteps = 24;

template <class M, int R, int C>
void tile(const typename M::X* x, int64_t x_stride, const typename M::W* w, int64_t block_size, int64_t steps,
          float* out, int64_t out_stride, bool accumulate, int64_t next_offset) {
  constexpr int P = C * kParts;
  const int64_t distance = R <= 4 ? kPrefetchSteps : steps;
  vf acc[R][P];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 32
    for (int p = 0; p < P; p++) acc[r][p] = accumulate ? load(out + r * out_stride + p * VL) : vf{};

  for (int64_t k = 0; k < steps; k++) {
    decltype(M::weights(w)) reg[P];
    bool inside = k + distance < steps;
    int64_t offset = (inside ? distance : distance - steps) * 16 * M::kStep + (inside ? 0 : next_offset);
#pragma GCC unroll 32
    for (int p = 0; p < P; p++) {
      const typename M::W* at = w + p / kParts * block_size + (k * 16 + p % kParts * VL) * M::kStep;
      __builtin_prefetch(at + offset, 0, 2);  // for reading, into L2
      reg[p] = M::weights(at);
    }
#pragma GCC unroll 2
    for (int i = 0; i < M::kRounds; i++) {
      decltype(M::round(reg[0], 0)) factor[P];
#pragma GCC unroll 32
      for (int p = 0; p < P; p++) factor[p] = M::round(reg[p], i);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        auto value = M::broadcast(x + r * x_stride + k * M::kStep + i);
#pragma GCC unroll 32
        for (int p = 0; p < P; p++) acc[r][p] = M::mac(acc[r][p], factor[p], value);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 32
    for (int p = 0; p < P; p++) store(out + r * out_stride + p * VL, acc[r][p]);
}

template <class M>
using TileFn = void (*)(const typename M::X*, int64_t, const typename M::W*, int64_t, int64_t, float*, int64_t,
                        bool, int64_t);

// The most columns (in blocks of 16) of a tile of `rows` rows: as many accumulators as the registers hold. With
// AVX-512, 8 x 3 was the fastest shape measured: 6 % faster than 12 x 2, which needs more broadcasts per
// multiplication.
constexpr int columns_for(int rows) {
  if (VL == 16) return rows == 1 ? 8 : rows <= 6 ? 4 : 3;
  if (VL == 8) return rows == 1 ? 4 : rows <= 2 ? 2 : 1;
  return rows == 1 ? 2 : 1;
}
constexpr int kMaxRows = VL == 16 ? 8 : VL == 8 ? 6 : 3;
constexpr int kMaxColumns = 8;

// The most rows of a tile for weights of type M. With AVX2 and two rounds, six rows would take all 16 registers: 12
// accumulators, 2 of weights, x and the mask. The compiler then keeps an accumulator in memory, which halves the
// speed.
template <class M>
constexpr int kRows = VL == 8 && M::kRounds == 2 ? 5 : kMaxRows;

template <class M, int R, int C>
constexpr TileFn<M> tile_or_null() {
  if constexpr (C <= columns_for(R)) return tile<M, R, C>;
  return nullptr;
}

template <class M, int R>
TileFn<M> pick_columns(int columns) {
  static constexpr TileFn<M> fns[kMaxColumns] = {
      tile_or_null<M, R, 1>(), tile_or_null<M, R, 2>(), tile_or_null<M, R, 3>(), tile_or_null<M, R, 4>(),
      tile_or_null<M, R, 5>(), tile_or_null<M, R, 6>(), tile_or_null<M, R, 7>(), tile_or_null<M, R, 8>()};
  return fns[columns - 1];
}

template <class M>
TileFn<M> pick_tile(int rows, int columns) {
  switch (rows) {
    case 1: return pick_columns<M, 1>(columns);
    case 2: return pick_columns<M, 2>(columns);
    case 3: return pick_columns<M, 3>(columns);
#if defined(MINILLM_ISA_AVX512) || defined(MINILLM_ISA_AVX2)
    case 4: return pick_columns<M, 4>(columns);
    case 5: return pick_columns<M, 5>(columns);
    case 6: return pick_columns<M, 6>(columns);
#endif
#if defined(MINILLM_ISA_AVX512)
    case 7: return pick_columns<M, 7>(columns);
    case 8: return pick_columns<M, 8>(columns);
#endif
    default: return nullptr;
  }
}

// Tiles over all rows and columns, for weights that are already in the cache. Columns are divided evenly: a tile of a
// single block has few accumulators and would wait for the latency of its own sums.
template <class M>
void product(const typename M::X* x, int64_t x_stride, int64_t rows, const typename M::W* w, int64_t block_size,
             int64_t blocks, int64_t steps, float* out, int64_t out_stride, bool accumulate) {
  for (int64_t r = 0; r < rows; r += kMaxRows) {
    int tile_rows = smaller(kMaxRows, rows - r), most = columns_for(tile_rows);
    int64_t tiles = (blocks + most - 1) / most, columns = (blocks + tiles - 1) / tiles;
    for (int64_t b = 0; b < blocks; b += columns) {
      int tile_columns = smaller(columns, blocks - b);
      pick_tile<M>(tile_rows, tile_columns)(x + r * x_stride, x_stride, w + b * block_size, block_size, steps,
                                            out + r * out_stride + b * 16, out_stride, accumulate, 0);
    }
  }
}

// ---- columns that are read where they lie, in any layout --------------------------------------

// The most groups of 16 columns of a register tile with `rows` rows, and the most rows.
constexpr int groups_for(int rows) {
  if (VL == 16) return 4;
  if (VL == 8) return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
  return rows == 1 ? 2 : 1;
}
constexpr int kSumRows = VL == 4 ? 3 : 6;

// acc[r] += x[r * x_stride] * column, for R rows and P registers of columns; `columns(p)` reads one. The factors of all
// rows, or the columns, are kept in registers: with AVX2, 12 accumulators leave four.
template <class M, int R, int P, class Columns>
INLINE void add_products(vf acc[R][P], const typename M::X* x, int64_t x_stride, const Columns& columns) {
  if constexpr (R < P) {
    decltype(M::broadcast(x)) value[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) value[r] = M::broadcast(x + r * x_stride);
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
      auto column = columns(p);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r][p] = M::mac(acc[r][p], column, value[r]);
    }
  } else {
    decltype(columns(0)) column[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) column[p] = columns(p);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      auto value = M::broadcast(x + r * x_stride);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) acc[r][p] = M::mac(acc[r][p], column[p], value);
    }
  }
}

// Accumulators of R rows and P registers in memory, rows `stride` apart.
template <int R, int P>
INLINE void load_sums(vf acc[R][P], const float* from, int64_t stride) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) acc[r][p] = load(from + r * stride + p * VL);
}

template <int R, int P>
INLINE void store_sums(const vf acc[R][P], float* to, int64_t stride) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) store(to + r * stride + p * VL, acc[r][p]);
}

}  // namespace
}  // namespace minillm::cpu
