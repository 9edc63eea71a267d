// The register tile of products with quantised matrices: the inner loop of quantized.h.
//
//              16 outputs      a line: one register of codes, several inputs of each output
//             +----------+
//    x row 0  | partial  |     partial += number(code) * x        for the lines of a group
//    x row 1  | partial  |     total = fma(partial, scale, total)   once a group (`fold`)
//             +----------+
//
// With many rows each broadcast of x is used for all outputs, and each unpacked number for all rows. With one or two
// rows of floats most of the work is unpacking, so a tile goes through one register of codes at a time. An addition of
// whole numbers has a latency of one cycle: one block of outputs is enough. An addition of floats has four: a tile needs
// several blocks.
//
// `M` says how codes are unpacked and multiplied (codes.h, codes_int16.h, codes_int8.h).

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
  float offset;      // a code as the kernels read it, minus its number: `kOffset` (codes.h)
  int64_t segment;   // inputs of a partial sum: a group of the codes, or a part of it
  int64_t segments;  // of a row

  QuantMatrix(const Matrix& m, int64_t in, float offset, int64_t segment = INT64_MAX)
      : form(m.form), layout(m.form, in), blocks(static_cast<const char*>(m.weight)), offset(offset),
        segment(smaller(segment, layout.group)) {
    auto parts = [&](int64_t lines) { return (lines * layout.line + this->segment - 1) / this->segment; };
    segments = layout.groups ? (layout.groups - 1) * parts(layout.lines) + parts(layout.last) : 0;
  }
  bool has_sums() const { return form.minimum || offset != 0; }
  const char* block(int64_t b) const { return blocks + b * layout.block; }
  // The scales (or minima) of outputs p .. p + VL - 1 of a block, from where those of a group begin.
  INLINE vf scale(const char* scales, int64_t p) const { return number(scales, p); }
  INLINE vf minimum(const char* scales, int64_t p) const { return number(scales + 16 * (form.wide ? 4 : 2), p); }
  INLINE vf number(const char* at, int64_t p) const {
    return form.wide ? cpu::load(reinterpret_cast<const float*>(at) + p) : cpu::load(reinterpret_cast<const fp16*>(at) + p);
  }
};

// The rows of x as the tiles read them, and the sums of their groups.
template <class X>
struct QuantRows {
  const X* x;
  int64_t stride;
  const float* sums = nullptr;       // [rows, groups], if x is not rounded
  const int32_t* offsets = nullptr;  // [rows, segments], if x is rounded: sum of the codes of x * offset of those of W
  const float* scales = nullptr;     // [rows, segments]
  const float* scaled = nullptr;     // [rows, segments]: sum of the codes of x * scale
};

// How far one stream of codes is prefetched. Of 8 to 96 lines 8 to 16 were the fastest with AVX2; 32 were 1.4 times slower
// than 16.
constexpr int64_t kOneStreamSteps = 16;

// Adds partial * scale, and what the minimum and the offset of the codes add, to the totals. `scales` are those of the group of
// segment s; the next block is `step` bytes further.
template <class M, int R, int P>
INLINE void fold(const QuantMatrix& w, const char* scales, int64_t step, int64_t s, typename M::Sum (&partial)[R][P],
                 const QuantRows<typename M::X>& rows, vf (&total)[R][P]) {
  const bool minimum = w.form.minimum;
  const float* of_x = (M::kRoundsX ? rows.scaled : rows.sums) + s;
#pragma GCC unroll 32
  for (int c = 0; c < P / kParts; c++) {
    vf scale[kParts], low[kParts] = {};
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) {
      scale[p] = w.scale(scales + c * step, p * VL);
      if (minimum) low[p] = w.minimum(scales + c * step, p * VL);
    }
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
      const int64_t row = r * w.segments;
#pragma GCC unroll 4
      for (int p = 0; p < kParts; p++) {
        vf sum, factor = scale[p], &to = total[r][c * kParts + p];
        if constexpr (M::kRoundsX) {
          sum = __builtin_convertvector(partial[r][c * kParts + p] - rows.offsets[row + s], vf);
          factor = factor * rows.scales[row + s];
        } else {
          sum = partial[r][c * kParts + p];
          if (w.offset != 0) sum = fma(splat(-w.offset), splat(of_x[row]), sum);
        }
        if (minimum) to = fma(low[p], splat(of_x[row]), to);
        to = fma(sum, factor, to);
      }
    }
  }
}

// Adds the products of the line of codes at `at`; the next block is `step` bytes further. `ahead`: bytes to what is prefetched.
template <class M, int R, int P, bool kInPlace>
INLINE void quant_line(typename M::Sum (&partial)[R][P], const typename M::X* x, int64_t x_stride, const char* at,
                       int64_t step, int64_t ahead) {
  auto line = [&](int p) {
    const char* own = at + p / kParts * step + p % kParts * VL * 4;
    if (kInPlace && p % kParts == 0) __builtin_prefetch(own + ahead, 0, 2);
    return M::load(own);
  };
  if constexpr (M::kWholeLines) {
#pragma GCC unroll 32
    for (int p = 0; p < P; p++) {
      auto state = line(p);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) partial[r][p] = M::mac_line(partial[r][p], state, x + r * x_stride);
    }
  } else if constexpr (R <= 2 && !M::kRoundsX) {  // few accumulators for each output: one register of codes at a time
#pragma GCC unroll 32
    for (int p = 0; p < P; p++) {
      auto state = line(p);
#pragma GCC unroll 8
      for (int i = 0; i < M::kSteps; i++) {
        auto value = M::value(state, i);
#pragma GCC unroll 2
        for (int r = 0; r < R; r++)
          partial[r][p] = M::mac(partial[r][p], value, M::broadcast(x + r * x_stride + i * M::kPerStep));
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
        auto factor = M::broadcast(x + r * x_stride + i * M::kPerStep);
#pragma GCC unroll 32
        for (int p = 0; p < P; p++) partial[r][p] = M::mac(partial[r][p], value[p], factor);
      }
    }
  }
}

// out[r][16 c ...] = x[r] . W[c] for R rows and C blocks. `codes` is where the lines of the first block begin, in the
// matrix itself or unpacked; `M::kSteps * M::kPerStep` inputs lie in a line. `next_offset`: bytes from this block to the one
// that this thread reads next in this column; the end of the block prefetches its beginning.
template <class M, int R, int C, bool kInPlace>
void quant_tile(const QuantMatrix& matrix, const QuantRows<typename M::X>& all_rows, const char* block, const char* codes,
                int64_t codes_step, int64_t next_offset, float* out, int64_t out_stride) {
  constexpr int P = C * kParts, kInputs = M::kSteps * M::kPerStep;
  const QuantMatrix w = matrix;  // copies stay in registers: no store can change them
  const QuantRows<typename M::X> rows = all_rows;
  const CodesLayout& layout = w.layout;
  const int64_t per_line = layout.line / kInputs;  // lines of M in one line of codes
  const int64_t segment = w.segment / kInputs;     // lines of a partial sum
  const int64_t steps = VL == 8 && C == 1 ? kOneStreamSteps : kPrefetchSteps;
  const int64_t ahead = R <= 4 ? steps * kLine : next_offset;  // distances as in tile.h
  const int64_t at_end = R <= 4 ? ahead + next_offset - layout.block : ahead;
  const char* turn = block + layout.block - ahead;
  const typename M::X* x = rows.x;
  const char* chunk = block;  // of one or two groups
  const char* at = codes;
  vf total[R][P] = {};
  for (int64_t g = 0, s = 0, second = 0; g < layout.groups; g++) {
    if (kInPlace && !second) at = chunk + layout.head;
    const char* scales = chunk + second * layout.own;
    for (int64_t left = layout.lines_of(g) * per_line; left > 0; left -= segment, s++) {
      typename M::Sum partial[R][P] = {};
      for (int64_t end = smaller(left, segment), l = 0; l < end; l++, at += kLine, x += kInputs)
        quant_line<M, R, P, kInPlace>(partial, x, rows.stride, at, codes_step, at < turn ? ahead : at_end);
      fold<M, R, P>(w, scales, layout.block, s, partial, rows, total);
    }
    if (second == layout.paired) chunk += layout.chunk;
    second = layout.paired - second;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 32
    for (int p = 0; p < P; p++) store(out + r * out_stride + p * VL, total[r][p]);
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

// A tile has all its columns or one. `linear` has more shapes; here each shape is compiled for every kind of codes.
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
