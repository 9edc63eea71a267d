// y = x W^T + bias for a quantised W, and its embedding lookup.
//
//     W       | group 0 of the inputs | group 1 | ...        codes, unpacked in registers
//     x row   |   ...  sum of code * x            -> partial sum, one register for each 16 outputs
//                  total = scale * partial + total, + minimum * (sum of x in the group)
//
// The weights in a partial sum are exact: small whole numbers, or floats of few bits. Activations may be rounded: to
// fixed-point numbers (codes_int16.h; a partial sum then has at most 128 inputs), or to int8 (codes_int8.h). Scales are
// applied once for each partial sum. An output's arithmetic goes over the inputs in one order and folds the groups in order,
// whatever the number of rows: contract C2. With many rows (kInPlaceRows) a strip of codes is unpacked once into memory
// that stays in the cache, and all tiles of rows read it; the numbers and their order are the same.
//
// Bytes: codes and scales once; with few rows nothing else matters. Limit: memory or unpacking at 1 row, then as linear.h.
// Sources: Frantar et al. 2210.17323 and Lin et al. 2306.00978 (weights in 4 bits, scales by group).

#pragma once

#include "linear.h"
#include "quantized_rows.h"
#include "quantized_tile.h"

namespace minillm::cpu {
namespace {

// Writes the numbers of one block's codes, 64 bytes for every `kPerStep` inputs.
template <class M>
void unpack_block(const QuantMatrix& w, const char* block, char* to) {
  for (int64_t g = 0; g < w.layout.groups; g++) {
    const char* line = block + w.layout.codes(g);
    for (int64_t l = 0; l < w.layout.lines_of(g); l++, line += kLine)
      for (int p = 0; p < kParts; p++) {
        auto state = M::load(line + p * VL * 4);
#pragma GCC unroll 8
        for (int i = 0; i < M::kSteps; i++) {
          auto value = M::value(state, i);
          memcpy(to + (l * M::kSteps + i) * kLine + p * VL * 4, &value, sizeof(value));
        }
      }
    to += w.layout.lines_of(g) * M::kSteps * kLine;
  }
}

// Blocks [begin, begin + width) of the columns, all rows.
template <class M, class T, bool kInPlace>
void quant_strip(const LinearArgs& a, const QuantMatrix& w, const QuantRows<typename M::X>& x, int64_t begin, int64_t width,
                 const char* codes, int64_t step, int64_t next_offset) {
  constexpr int64_t tile_stride = kMaxColumns * 16;
  alignas(64) float tile[kMaxRows * tile_stride];
  for (int64_t r = 0; r < a.rows; r += kQuantRows<M>) {
    int64_t rows = smaller(kQuantRows<M>, a.rows - r);
    int tile_rows = padded_rows<M>(rows);
    const int64_t at = r * w.segments;
    QuantRows<typename M::X> own = {x.x + r * x.stride, x.stride};
    if (!M::kRoundsX) own.sums = x.sums + at;
    else own.offsets = x.offsets + at, own.scales = x.scales + at, own.scaled = x.scaled + at;
    for (int64_t b = 0, columns; b < width; b += columns) {
      columns = width - b >= quant_columns<M>(tile_rows) ? quant_columns<M>(tile_rows) : 1;
      int64_t next = b + columns < width ? columns * w.layout.block : next_offset - b * w.layout.block;
      pick_quant_tile<M, kInPlace>(tile_rows, columns > 1)(w, own, w.block(begin + b), codes + b * step, step, r ? 0 : next,
                                                           tile + b * 16, tile_stride);
    }
    store_tile<T>(a, tile, tile_stride, r, rows, begin * 16, smaller(width * 16, a.out - begin * 16));
  }
}

// Up to this many rows codes are unpacked in registers, for each tile of rows anew. Measured with AVX2: floats take four
// times the bytes of 8-bit codes, so writing them pays late; 4-bit codes cost more to unpack, so it pays early.
// `M::Ready` reads unpacked codes; its tiles have as many rows as those of M.
template <class M>
constexpr int64_t kInPlaceRows = VL == 16 ? kMaxRows : (M::kRoundsX || M::kSteps > 4 ? 2 : 6) * kMaxRows;

// Blocks of outputs that a thread takes at once. With single blocks two threads would alternate inside one run of memory: 1.4
// times slower at one row (AVX2, w8a8).
template <class M>
constexpr int64_t kStripBlocks = VL == 16 ? 1 : M::kRoundsX ? 6 : 4;

template <class M, class T>
void quant_over(const LinearArgs& a, const QuantMatrix& w, const QuantRows<typename M::X>& x) {
  using Ready = typename M::Ready;
  const bool in_place = !M::kUnpacks || a.rows <= kInPlaceRows<M>;
  int64_t blocks = packed_blocks(a.out), width = quant_columns<M>(padded_rows<M>(smaller(a.rows, kQuantRows<M>)));
  if (in_place) width = larger(width, kStripBlocks<M>);
  const int64_t step = round_up(a.in, w.layout.line) / M::kPerStep * kLine;  // bytes of a block that is unpacked
  const int64_t strip = width * w.layout.block;
  parallel_tasks((blocks + width - 1) / width, [&](TaskQueue& tasks) {
    Scratch<char> memory(in_place ? 0 : width * step);
    for (; tasks.left(); tasks.advance()) {
      int64_t begin = tasks.now * width, own = smaller(width, blocks - begin);
      if constexpr (M::kUnpacks) {
        for (int64_t b = 0; !in_place && b < own; b++) unpack_block<M>(w, w.block(begin + b), memory.data + b * step);
        if (!in_place) quant_strip<Ready, T, false>(a, w, x, begin, own, memory.data, step, 0);
      }
      if (!in_place) continue;
      int64_t next = (tasks.next - tasks.now) * strip;
      if (tasks.last())  // prefetch the next matrix, as if it had the same form
        next = a.prefetch_next ? static_cast<const char*>(a.prefetch_next) - w.block(begin) + tasks.rank * strip : 0;
      quant_strip<M, T, true>(a, w, x, begin, own, w.block(begin), w.layout.block, next);
    }
  });
}

// Copies the rows of x, in the order of the codes and filled up with zeros to whole lines, and sums their groups.
template <class M, class T>
void quant_as(const LinearArgs& a) {
  using X = typename M::X;
  QuantMatrix w(a.weight, a.in, M::kOffset);
  const CodesLayout& layout = w.layout;
  const bool has_sums = w.has_sums();
  int64_t stride = round_up(a.in, layout.line);
  const T* x = static_cast<const T*>(a.x);
  const int64_t padded = all_padded_rows<M>(a.rows);
  Scratch<float> sums(has_sums ? padded * layout.groups : 0);
  Scratch<X> copy(padded * stride + VL);
  memset(static_cast<void*>(copy.data + a.rows * stride), 0, (padded - a.rows) * stride * sizeof(X));
  for (int64_t i = a.rows * layout.groups; has_sums && i < padded * layout.groups; i++) sums.data[i] = 0;
  parallel_for(a.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      X* to = copy.data + r * stride;
      copy_row(x + r * a.x_stride, a.in, w.form.order, to, stride);
      for (int64_t g = 0; has_sums && g < layout.groups; g++)
        sums.data[r * layout.groups + g] =
            sum_of(to + g * layout.group, smaller(layout.group, stride - g * layout.group));
      if constexpr (M::kWhole) scale_row<M>(to, stride);
    }
  });
  quant_over<M, T>(a, w, {copy.data, stride, sums.data});
}

// The same for activations that are rounded, each row and segment for itself: contract C2.
template <class M, class T>
void quant_rounded(const LinearArgs& a) {
  using X = typename M::X;
  QuantMatrix w(a.weight, a.in, M::kOffset, M::kFixed ? kFixedSegment : INT64_MAX);
  const CodesLayout& layout = w.layout;
  const int64_t stride = round_up(a.in, layout.line);
  const int64_t padded = all_padded_rows<M>(a.rows);
  Scratch<X> codes(padded * stride);
  Scratch<int32_t> offsets(padded * w.segments);
  Scratch<float> scales(padded * w.segments), scaled(padded * w.segments);
  parallel_for(padded, 16, [&](int64_t begin, int64_t end) {
    Scratch<float> row(stride + VL);
    for (int64_t r = begin; r < end; r++) {
      if (r < a.rows) copy_row(static_cast<const T*>(a.x) + r * a.x_stride, a.in, w.form.order, row.data, stride);
      else memset(row.data, 0, stride * sizeof(float));
      int64_t at = r * w.segments;
      for (int64_t k = 0, count; k < stride; k += count, at++) {
        count = smaller(w.segment, smaller(layout.group - k % layout.group, stride - k));
        float sum;
        round_group<M>(row.data + k, count, codes.data + r * stride + k, scales.data + at, &sum);
        offsets.data[at] = static_cast<int32_t>(sum * M::kOffset);
        scaled.data[at] = sum * scales.data[at];
        scales.data[at] *= M::kUnit;
      }
    }
  });
  quant_over<M, T>(a, w, {codes.data, stride, nullptr, offsets.data, scales.data, scaled.data});
}

template <Codes K, class T>
void quant_codes(const LinearArgs& a) {
  if constexpr (K == Codes::int8 || K == Codes::int4 || K == Codes::uint4)
    if (a.weight.form.int8_x) return quant_rounded<Int8Codes<K>, T>(a);
#if defined(MINILLM_ISA_AVX2)
  if constexpr (!__is_same(T, float) && K != Codes::fp8) return quant_rounded<Int16Codes<K, true>, T>(a);
#elif defined(MINILLM_ISA_AVX512)
  if constexpr (__is_same(T, bf16)) return quant_as<PairCodes<K, FloatCodes<K>::kBits>, T>(a);
#endif
  quant_as<FloatCodes<K>, T>(a);
}

template <class T>
void quant_linear(const LinearArgs& a) {
  if (!a.rows || !a.out) return;
  switch (a.weight.form.codes) {
    case Codes::int8: return quant_codes<Codes::int8, T>(a);
    case Codes::fp8: return quant_codes<Codes::fp8, T>(a);
    case Codes::int4: return quant_codes<Codes::int4, T>(a);
    case Codes::uint4: return quant_codes<Codes::uint4, T>(a);
    case Codes::fp4: return quant_codes<Codes::fp4, T>(a);
    case Codes::none: return;
  }
}

// One row of the matrix as floats: scale * number + minimum, each step rounded.
template <Codes K>
void quant_row(const QuantMatrix& w, int64_t id, float* to) {
  constexpr int bits = FloatCodes<K>::kBits, per_line = 32 / bits;
  const CodesLayout& layout = w.layout;
  const char* block = w.block(id / 16);
  const int64_t lane = id % 16, part = lane / VL * VL;
  for (int64_t g = 0; g < layout.groups; g++) {
    const char* scales = block + layout.scales(g);
    const float scale = w.scale(scales, part)[lane - part];
    const float minimum = w.form.minimum ? w.minimum(scales, part)[lane - part] : 0;
    const char* codes = block + layout.codes(g) + lane * 4;
    const int64_t first = g * layout.group, count = smaller(layout.group, layout.in - first);
    for (int64_t i = 0; i < count; i++) {
      int place = static_cast<int>(i % per_line);
      uint32_t line = load_as<uint32_t>(codes + i / per_line * kLine);
      int code = static_cast<int>(line >> ((place & 1) * 16 + (place >> 1) * bits) & ((1u << bits) - 1));
      float number = number_of(K, code) * scale;
      if (w.form.minimum) number += minimum;
      to[w.form.order ? w.form.order[first + i] : first + i] = number;
    }
  }
}

template <class T>
void quant_embedding(const EmbeddingArgs& a) {
  QuantMatrix w(a.weight, a.in, 0);
  parallel_for(a.num_tokens, 16, [&](int64_t begin, int64_t end) {
    Scratch<float> row(a.in + VL);
    for (int64_t t = begin; t < end; t++) {
      switch (w.form.codes) {
        case Codes::int8: quant_row<Codes::int8>(w, a.ids[t], row.data); break;
        case Codes::fp8: quant_row<Codes::fp8>(w, a.ids[t], row.data); break;
        case Codes::int4: quant_row<Codes::int4>(w, a.ids[t], row.data); break;
        case Codes::uint4: quant_row<Codes::uint4>(w, a.ids[t], row.data); break;
        case Codes::fp4: quant_row<Codes::fp4>(w, a.ids[t], row.data); break;
        case Codes::none: break;
      }
      T* to = static_cast<T*>(a.y) + t * a.in;
      for (int64_t k = 0; k < a.in; k += VL) store_n(to + k, load_n(row.data + k, a.in - k), a.in - k);
    }
  });
}

void embedding(const EmbeddingArgs& a) {
  if (a.weight.form.codes == Codes::none) return plain_embedding(a);
  switch (a.dtype) {
    case DType::f32: return quant_embedding<float>(a);
    case DType::bf16: return quant_embedding<bf16>(a);
    case DType::f16: return quant_embedding<fp16>(a);
  }
}

void linear(const LinearArgs& a) {
  if (a.weight.form.codes == Codes::none) return plain_linear(a);
  switch (a.dtype) {
    case DType::f32: return quant_linear<float>(a);
    case DType::bf16: return quant_linear<bf16>(a);
    case DType::f16: return quant_linear<fp16>(a);
  }
}

}  // namespace
}  // namespace minillm::cpu
