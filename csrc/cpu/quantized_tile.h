// The register tile of products with quantised matrices: the inner loop of quantized.h.
//
//              16 outputs      a line: one register of codes, several inputs of each output
//             +----------+
//    x row 0  | partial  |     partial += number(code) * x        for the lines of a group
//    x row 1  | partial  |     total = fma(partial, scale, total)   once a group (`fold`)
//             +----------+
//
// With many rows a broadcast of x serves all outputs, and every number of the codes all rows. With one or two rows
// unpacking is most of the work, and a tile goes through one register of codes at a time. Sums of whole numbers wait one
// cycle for each other and need one block of outputs; sums of floats wait four and need several.
//
// `M` says how codes are unpacked and multiplied (codes.h, codes_int8.h).

#pragma once

#include "codes_int8.h"
#include "codes_layout.h"
#include "tile.h"

namespace minillm::cpu {
namespace {

// One quantised matrix: its layout, and how its parts are read.
struct QuantMatrix {
  Form form;
  CodesLayout layout;
  const char* blocks;
  float offset;  // what the kernels read too much in every code: `kOffset` (codes.h)

  QuantMatrix(const Matrix& m, int64_t in, float offset)
      : form(m.form), layout(m.form, in), blocks(static_cast<const char*>(m.weight)), offset(offset) {}
  bool has_sums() const { return form.minimum || offset != 0; }
  const char* block(int64_t b) const { return blocks + b * layout.block; }
  // The scales (or minima) of outputs p .. p + VL - 1 of a block.
  INLINE vf scale(const char* block, int64_t g, int64_t p) const { return number(block + layout.scales(g), p); }
  INLINE vf minimum(const char* block, int64_t g, int64_t p) const {
    return number(block + layout.scales(g) + 16 * (form.wide ? 4 : 2), p);
  }
  INLINE vf number(const char* at, int64_t p) const {
    return form.wide ? cpu::load(reinterpret_cast<const float*>(at) + p) : cpu::load(reinterpret_cast<const fp16*>(at) + p);
  }
};

// The rows of x as the tiles read them, and the sums of their groups.
template <class X>
struct QuantRows {
  const X* x;
  int64_t stride;
  const float* sums;              // [rows, groups]
  const float* scales = nullptr;  // [rows, groups], if x is rounded
  const float* scaled = nullptr;  // [rows, groups]: sum * scale
};

// Adds partial * scale, and what the minimum and the offset of the codes add, to the totals of group g.
template <class M, int R, int P>
INLINE void fold(const QuantMatrix& w, const char* block, int64_t g, typename M::Sum (&partial)[R][P],
                 const QuantRows<typename M::X>& rows, float* out, int64_t out_stride) {
  const bool minimum = w.form.minimum;
  const int64_t block_size = w.layout.block, groups = w.layout.groups;
  const float offset = w.offset, *sums = rows.sums + g, *scales = M::kRoundsX ? rows.scales + g : nullptr;
  const float* of_x = (M::kRoundsX ? rows.scaled : rows.sums) + g;
#pragma GCC unroll 32
  for (int p = 0; p < P; p++) {
    const char* own = block + p / kParts * block_size;
    vf scale = w.scale(own, g, p % kParts * VL), low = minimum ? w.minimum(own, g, p % kParts * VL) : vf{};
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
      float* to = out + r * out_stride + p * VL;
      vf sum, factor = scale, total = g ? load(to) : vf{};
      if constexpr (M::kRoundsX) sum = __builtin_convertvector(partial[r][p], vf), factor = scale * scales[r * groups];
      else sum = partial[r][p];
      if (offset != 0) sum = fma(splat(-offset), splat(sums[r * groups]), sum);
      if (minimum) total = fma(low, splat(of_x[r * groups]), total);
      store(to, fma(sum, factor, total));
    }
  }
}

// out[r][16 c ...] = x[r] . W[c] for R rows and C blocks. `codes` is where the lines of the first block begin, in the
// matrix itself or unpacked; `M::kSteps * M::kPerStep` inputs lie in a line. `next_offset`: bytes from this block to the one
// that this thread reads next in this column; the end of the block prefetches its beginning.
template <class M, int R, int C, bool kInPlace>
void quant_tile(const QuantMatrix& w, const QuantRows<typename M::X>& rows, const char* block, const char* codes,
                int64_t codes_step, int64_t next_offset, float* out, int64_t out_stride) {
  constexpr int P = C * kParts, kInputs = M::kSteps * M::kPerStep;
  const CodesLayout& layout = w.layout;
  const int64_t per_line = layout.line / kInputs;  // lines of M in one line of codes
  for (int64_t g = 0; g < layout.groups; g++) {
    typename M::Sum partial[R][P] = {};
    const char* at = codes + (kInPlace ? layout.codes(g) : g * layout.group / kInputs * kLine);
    const typename M::X* x = rows.x + g * layout.group;
    int64_t lines = layout.lines_of(g) * per_line;
    for (int64_t l = 0; l < lines; l++, at += kLine, x += kInputs) {
      int64_t ahead = R <= 4 ? kPrefetchSteps * kLine : next_offset;  // distances as in tile.h
      if (R <= 4 && at + ahead - block >= layout.block) ahead += next_offset - layout.block;
      auto line = [&](int p) {
        const char* own = at + p / kParts * codes_step + p % kParts * VL * 4;
        if (kInPlace && p % kParts == 0) __builtin_prefetch(own + ahead, 0, 2);
        return M::load(own);
      };
      if constexpr (M::kWholeLines) {
#pragma GCC unroll 32
        for (int p = 0; p < P; p++) {
          auto state = line(p);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) partial[r][p] = M::mac_line(partial[r][p], state, x + r * rows.stride);
        }
      } else if constexpr (R <= 2) {  // few accumulators for each output: one register of codes at a time
#pragma GCC unroll 32
        for (int p = 0; p < P; p++) {
          auto state = line(p);
#pragma GCC unroll 8
          for (int i = 0; i < M::kSteps; i++) {
            auto value = M::value(state, i);
#pragma GCC unroll 2
            for (int r = 0; r < R; r++)
              partial[r][p] = M::mac(partial[r][p], value, M::broadcast(x + r * rows.stride + i * M::kPerStep));
          }
        }
      } else {  // each broadcast of x serves all outputs
        typename M::State state[P];
#pragma GCC unroll 32
        for (int p = 0; p < P; p++) state[p] = line(p);
#pragma GCC unroll 8
        for (int i = 0; i < M::kSteps; i++) {
          decltype(M::value(state[0], i)) value[P];
#pragma GCC unroll 32
          for (int p = 0; p < P; p++) value[p] = M::value(state[p], i);
#pragma GCC unroll 16
          for (int r = 0; r < R; r++) {
            auto factor = M::broadcast(x + r * rows.stride + i * M::kPerStep);
#pragma GCC unroll 32
            for (int p = 0; p < P; p++) partial[r][p] = M::mac(partial[r][p], value[p], factor);
          }
        }
      }
    }
    fold<M, R, P>(w, block, g, partial, rows, out, out_stride);
  }
}

template <class M>
using QuantTile = void (*)(const QuantMatrix&, const QuantRows<typename M::X>&, const char*, const char*, int64_t, int64_t,
                           float*, int64_t);

// The columns of a tile of `rows` rows. Fewer than `linear` has: the codes and their numbers need registers, too.
template <class M>
constexpr int quant_columns(int rows) {
  if (VL == 16) return rows <= 4 ? 4 : 3;
  return VL == 8 && rows <= 2 && !M::kRoundsX ? 4 / rows : 1;
}

// Tiles exist with all columns and with one: fewer shapes than `linear` has, because each exists for all codes.
template <class M, int R, bool kInPlace>
QuantTile<M> pick_quant_columns(bool all) {
  return all ? quant_tile<M, R, quant_columns<M>(R), kInPlace> : quant_tile<M, R, 1, kInPlace>;
}

// The most rows of a tile. Whole lines need more registers.
template <class M>
constexpr int kQuantRows = M::kWholeLines ? 4 : kMaxRows;

// A tile has 1, 2, 4 or kQuantRows rows, the last ones perhaps rows of zeros.
template <class M>
constexpr int padded_rows(int64_t rows) {
  return static_cast<int>(rows <= 2 ? rows : rows <= 4 && kQuantRows<M> > 4 ? 4 : kQuantRows<M>);
}
// The rows of x, filled up so that the last tile has all its rows.
template <class M>
constexpr int64_t all_padded_rows(int64_t rows) {
  int64_t tiles = (rows - 1) / kQuantRows<M>;
  return tiles * kQuantRows<M> + padded_rows<M>(rows - tiles * kQuantRows<M>);
}

template <class M, bool kInPlace>
QuantTile<M> pick_quant_tile(int rows, bool all) {
  if (rows == 1) return pick_quant_columns<M, 1, kInPlace>(all);
  if (rows == 2) return pick_quant_columns<M, 2, kInPlace>(all);
  if constexpr (kQuantRows<M> > 4)
    if (rows == 4) return pick_quant_columns<M, 4, kInPlace>(all);
  return pick_quant_columns<M, kQuantRows<M>, kInPlace>(all);
}

}  // namespace
}  // namespace minillm::cpu
