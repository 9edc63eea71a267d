// y = x W^T + bias with packed weights, and the packing.
//
// Bytes: W once (2 in out for bf16); with few rows nothing else matters. FLOPs: 2 rows in out. Limit: memory
// bandwidth at 1 row, the dot-product units from about 16 rows on.
//
//    columns of W  | strip | strip | strip | strip | ...     a free thread takes the next strip of columns
//    rows of x     | tile  | tile  | tile  | tile  |         and reads it from memory exactly once: the strip
//                  | tile  | tile  | tile  | tile  |         stays in cache while all rows are multiplied with it
//
// Each result is rounded once, from the fp32 accumulator plus bias to the storage type.

#pragma once

#include "kernels.h"
#include "threads.h"
#include "tile.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

// ---- packing ----------------------------------------------------------------------------------

// Packs one block of 16 outputs from its `count` rows of `in` numbers; missing rows become zeros.
template <class T>
void pack_block(const T* rows, int64_t count, int64_t in, T* packed) {
  constexpr int64_t step = __is_same(T, bf16) ? 2 : 1;
  for (int64_t k = 0; k < in; k += step)
    for (int64_t lane = 0; lane < kPackLanes; lane++)
      for (int64_t i = 0; i < step; i++)
        packed[k * kPackLanes + lane * step + i] = lane < count && k + i < in ? rows[lane * in + k + i] : T{};
}

// A block's rows are copied before the block is written, so `packed` may be the memory of `source`: without padding,
// 16 rows take exactly the space of one block.
template <class T>
void pack_as(const PackArgs& a) {
  int64_t block_size = packed_block_size(a.in, a.dtype);
  parallel_for(packed_blocks(a.out), 4, [&](int64_t begin, int64_t end) {
    Scratch<T> rows(kPackLanes * a.in);
    for (int64_t b = begin; b < end; b++) {
      int64_t first = b * kPackLanes, count = smaller(kPackLanes, a.out - first);
      memcpy(rows.data, static_cast<const T*>(a.source) + first * a.in, count * a.in * sizeof(T));
      pack_block(rows.data, count, a.in, static_cast<T*>(a.packed) + b * block_size);
    }
  });
}

INLINE void put(float from, float* to) { *to = from; }
INLINE void put(bf16 from, bf16* to) { *to = from; }
INLINE void put(fp16 from, fp16* to) { *to = from; }
INLINE void put(bf16 from, float* to) {
  uint32_t bits = uint32_t{from.bits} << 16;
  memcpy(to, &bits, sizeof(bits));
}

// Unpacks row `id` of a packed matrix: the embedding lookup. A tied model needs no second copy of the matrix.
template <class W, class T>
void embedding_as(const EmbeddingArgs& a) {
  constexpr int64_t step = __is_same(W, bf16) ? 2 : 1;
  int64_t block_size = packed_block_size(a.in, a.weight.dtype);
  parallel_for(a.num_tokens, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      int64_t id = a.ids[t];
      const W* from = static_cast<const W*>(a.weight.weight) + id / 16 * block_size + id % 16 * step;
      T* to = static_cast<T*>(a.y) + t * a.in;
      for (int64_t k = 0; k < a.in; k++) put(from[k / step * 16 * step + k % step], to + k);
    }
  });
}

// ---- the product ------------------------------------------------------------------------------

// Adds the bias to one tile's fp32 results and stores them in y.
template <class T>
void store_tile(const LinearArgs& a, const float* tile, int64_t tile_stride, int64_t row, int64_t rows, int64_t column,
          int64_t columns) {
  for (int64_t r = 0; r < rows; r++) {
    T* y = static_cast<T*>(a.y) + (row + r) * a.out + column;
    for (int64_t c = 0; c < columns; c += VL) {
      vf value = load(tile + r * tile_stride + c);
      if (a.weight.bias) value = value + load_n(static_cast<const T*>(a.weight.bias) + column + c, columns - c);
      store_n(y + c, value, columns - c);
    }
  }
}

// Blocks [begin, begin + width) of the columns, all rows. `next_offset`: distance in elements to the weights that
// this thread reads next; the first rows prefetch them.
template <class M, class T>
void linear_strip(const LinearArgs& a, const typename M::X* x, int64_t x_stride, int64_t begin, int64_t width,
                  int64_t next_offset) {
  constexpr int64_t tile_stride = kMaxColumns * 16;
  alignas(64) float tile[kMaxRows * tile_stride];
  int64_t block_size = packed_block_size(a.in, a.weight.dtype), steps = (a.in + M::kStep - 1) / M::kStep;
  const typename M::W* w = static_cast<const typename M::W*>(a.weight.weight) + begin * block_size;
  for (int64_t r = 0; r < a.rows; r += kRows<M>) {
    int rows = smaller(kRows<M>, a.rows - r);
    pick_tile<M>(rows, width)(x + r * x_stride, x_stride, w, block_size, steps, tile, tile_stride, false,
                              r ? 0 : next_offset);
    store_tile<T>(a, tile, tile_stride, r, rows, begin * 16, smaller(width * 16, a.out - begin * 16));
  }
}

template <class M, class T>
void linear_over(const LinearArgs& a, const typename M::X* x, int64_t x_stride) {
  using W = typename M::W;
  int64_t blocks = packed_blocks(a.out), block_size = packed_block_size(a.in, a.weight.dtype);
  int64_t width = columns_for(smaller(a.rows, kRows<M>)), strip = width * block_size;
  parallel_tasks((blocks + width - 1) / width, [&](TaskQueue& tasks) {
    for (; tasks.left(); tasks.advance()) {
      int64_t offset = (tasks.next - tasks.now) * strip;
      if (tasks.last()) {  // prefetch the next matrix, at the strip with which this thread will begin
        const W *own = static_cast<const W*>(a.weight.weight), *next = static_cast<const W*>(a.prefetch_next);
        offset = next ? next - own + (tasks.rank - tasks.now) * strip : 0;
      }
      linear_strip<M, T>(a, x, x_stride, tasks.now * width, smaller(width, blocks - tasks.now * width), offset);
    }
  });
}

// Converts the rows of x to the form that the tiles read. bf16 rows are used as they are, unless the last pair would
// reach past the row's end; other types are converted to float.
template <class M, class T>
void linear_as(const LinearArgs& a) {
  using X = typename M::X;
  if (!a.rows || !a.out) return;
  const T* x = static_cast<const T*>(a.x);
  if constexpr (__is_same(X, T)) {
    if (a.in % M::kStep == 0) return linear_over<M, T>(a, x, a.x_stride);
  }
  int64_t stride = (a.in + M::kStep - 1) / M::kStep * M::kStep;
  Scratch<X> copy(a.rows * stride + VL);
  for (int64_t r = 0; r < a.rows; r++) {
    X* to = copy.data + r * stride;
    for (int64_t k = 0; k < a.in; k += VL) store_n(to + k, load_n(x + r * a.x_stride + k, a.in - k), stride - k);
  }
  linear_over<M, T>(a, copy.data, stride);
}

void pack(const PackArgs& a) {
  switch (a.dtype) {
    case DType::f32: return pack_as<float>(a);
    case DType::bf16: return pack_as<bf16>(a);
    case DType::f16: return pack_as<fp16>(a);
  }
}

void plain_embedding(const EmbeddingArgs& a) {
  switch (a.dtype) {
    case DType::f32:
      return a.weight.dtype == DType::bf16 ? embedding_as<bf16, float>(a) : embedding_as<float, float>(a);
    case DType::bf16: return embedding_as<bf16, bf16>(a);
    case DType::f16: return embedding_as<fp16, fp16>(a);
  }
}

void plain_linear(const LinearArgs& a) {
  switch (a.dtype) {
    case DType::f32:
      return a.weight.dtype == DType::bf16 ? linear_as<PairsWithFloat, float>(a) : linear_as<Singles<float>, float>(a);
    case DType::bf16: return linear_as<PairsBf16, bf16>(a);
    case DType::f16: return linear_as<Singles<fp16>, fp16>(a);
  }
}

}  // namespace
}  // namespace minillm::cpu
