// Attention, rung 2: tiles in shared memory and online softmax. The scores never leave the chip.
//
//     a block: 32 rows of one head of one sequence        shared memory, float32
//
//                 keys, 32 at a time                      q        [32][head_dim + 1]
//               +----+----+----+----+                     kv       [32][head_dim + 1]  K, then V
//     32 rows   |    |    |    | \  |  --> out            weights  [32][33]
//               +----+----+----+----+
//               4 threads share a row: each computes the scores of 8 of the tile's keys, then a quarter
//               of the output's columns
//
// v1 writes the N x N scores to global memory and reads them back. Here a tile of scores stays in registers
// and shared memory until it is used. The cost: the softmax must be computed before the largest score of the
// row is known (paging.h: Softmax).
//
// Bytes: K and V are read once by each block that needs them, at most ceil(q_len / 32) times; q is read once
// and out is written once. FLOPs: 4 * head_dim per visible (row, key). Limit: shared memory, about one load
// per multiply-add. Capped scores and sinks (kVariant) are kernels of their own: Llama's has no branch for them. Left out: tensor cores, and sharing K and V among the query heads of a group (each head
// reads them again).
//
// Source: Dao et al., FlashAttention (arXiv 2205.14135) and FlashAttention-2 (arXiv 2307.08691).
// Predicted, H100: 593 us for 1024 tokens (shared memory), 23.6 ms for 8192 tokens (shared memory).

#include "paging.h"

namespace minillm::cuda {
namespace {

constexpr int kRows = 32;
constexpr int kThreadsPerRow = 4;
constexpr int kThreads = kRows * kThreadsPerRow;
constexpr int kKeysPerThread = kKeyTile / kThreadsPerRow;

// Each row is padded by one word, so that the same column of neighbouring rows lies in neighbouring banks: the
// eight rows that a warp reads are then served in one wavefront, not in eight.
template <int kDim>
constexpr int kPitch = kDim + 1;

template <int kDim>
using Tile = float[kRows][kPitch<kDim>];

// The tile of K and V. With heads of 256 the two tiles have 66 KB, more than static arrays may take: then this one is
// dynamic. It is declared last, after the static arrays.
template <int kDim>
constexpr size_t kDynamicBytes = kDim > 128 ? sizeof(Tile<kDim>) : 0;

template <int kDim>
__device__ __forceinline__ Tile<kDim>& key_tile() {
  if constexpr (kDynamicBytes<kDim> > 0) {
    DYNAMIC_SHARED(Tile<kDim>, kv);
    return *kv;
  } else {
    SHARED(float, kv, [kKeyTile][kPitch<kDim>]);
    return kv;
  }
}

struct RowTile {
  int sequence, first_row, rows;  // first_row: relative to the sequence's first new row
};

// Tile number blockIdx.x, counted over all sequences; `rows` is 0 if there is no such tile.
__device__ __forceinline__ RowTile find_tile(const Sequences& s) {
  int tile = blockIdx.x, start = s.query_start[0];
  for (int i = 0; i < s.num_seqs; i++) {
    int end = s.query_start[i + 1], tiles = (end - start + kRows - 1) / kRows;
    if (tile < tiles) return {i, tile * kRows, min(kRows, end - start - tile * kRows)};
    tile -= tiles;
    start = end;
  }
  return {0, 0, 0};
}

// Loads rows of head_dim numbers from global memory, 16 bytes per thread and load. Where `row_at` returns null,
// the row is filled with zeros: a slot that was never written may hold NaN, and 0 * NaN is NaN. The number of
// loads per thread is a constant, so up to four are issued before the first one is waited for.
template <class T, int kDim, class RowAt>
__device__ __forceinline__ void load_rows(Tile<kDim>& tile, RowAt row_at) {
  constexpr int kWide = 16 / sizeof(T), kPerRow = kDim / kWide, kLoads = kRows * kPerRow / kThreads;
  constexpr int kAhead = kLoads < 4 ? kLoads : 4;
  static_assert(kLoads * kThreads == kRows * kPerRow, "threads share a tile evenly");
  UNROLL
  for (int first = 0; first < kLoads; first += kAhead) {
    Vec<T, kWide> loaded[kAhead];
    const T* from[kAhead];
    UNROLL
    for (int n = 0; n < kAhead; n++) {
      int i = (first + n) * kThreads + threadIdx.x;
      from[n] = first + n < kLoads ? row_at(i / kPerRow) : nullptr;
      if (from[n]) loaded[n] = load_wide<Vec<T, kWide>>(from[n] + i % kPerRow * kWide);
    }
    UNROLL
    for (int n = 0; n < kAhead; n++) {
      int i = (first + n) * kThreads + threadIdx.x;
      if (first + n >= kLoads) break;
      UNROLL
      for (int j = 0; j < kWide; j++)
        tile[i / kPerRow][i % kPerRow * kWide + j] = from[n] ? to_float(loaded[n].v[j]) : 0.0f;
    }
  }
}

template <class T, int kDim, bool kVariant>
__global__ void __launch_bounds__(kThreads) attention_v2_kernel(const __grid_constant__ AttentionArgs p) {
  static_assert(kRows == kKeyTile, "q and kv share the type of a tile");
  SHARED(float, q, [kRows][kPitch<kDim>]);
  SHARED(float, weights, [kRows][kKeyTile + 1]);
  SHARED(int64_t, slots, [kKeyTile]);
  Tile<kDim>& kv = key_tile<kDim>();

  RowTile tile = find_tile(p.sequences);
  if (tile.rows == 0) return;  // the whole block returns: no thread waits at a barrier below
  int head = blockIdx.y, kv_head = head / (p.num_heads / p.num_kv_heads);
  int row_start = p.sequences.query_start[tile.sequence], kv_len = p.sequences.kv_len[tile.sequence];
  int q_len = p.sequences.query_start[tile.sequence + 1] - row_start;
  int row = threadIdx.x / kThreadsPerRow, part = threadIdx.x % kThreadsPerRow;
  int64_t token = row_start + tile.first_row + row;

  load_rows<T, kDim>(q, [&](int r) -> const T* {
    int64_t at = row_start + tile.first_row + r;
    return r < tile.rows ? static_cast<const T*>(p.q) + at * p.q_stride + head * kDim : nullptr;
  });

  // Threads without a row follow the last row of the tile: they must reach every barrier.
  KeyRange keys = visible_keys(tile.first_row + min(row, tile.rows - 1), q_len, kv_len, p.window);
  int first_tile = visible_keys(tile.first_row, q_len, kv_len, p.window).first / kKeyTile;
  int last_tile = visible_keys(tile.first_row + tile.rows - 1, q_len, kv_len, p.window).last / kKeyTile;

  Softmax softmax = first_state<T, kVariant>(p, head);
  float out[kDim / kThreadsPerRow] = {};  // of columns part, part + 4, ...
  for (int key_tile = first_tile; key_tile <= last_tile; key_tile++) {
    int tile_start = key_tile * kKeyTile;
    auto cache_row = [&](const void* cache, int key) -> const T* {
      int64_t at = (slots[key] * p.num_kv_heads + kv_head) * kDim;
      return slots[key] >= 0 ? static_cast<const T*>(cache) + at : nullptr;
    };
    if (threadIdx.x < kKeyTile) {
      int key = tile_start + threadIdx.x;
      slots[threadIdx.x] = key < kv_len ? slot_of(p.sequences, tile.sequence, key, p.block_size) : -1;
    }
    __syncthreads();  // slots are written, and the previous tile's V has been read
    load_rows<T, kDim>(kv, [&](int key) { return cache_row(p.k_cache, key); });
    __syncthreads();

    float scores[kKeysPerThread] = {};
    for (int d = 0; d < kDim; d++) {
      float x = q[row][d];
      UNROLL
      for (int j = 0; j < kKeysPerThread; j++) scores[j] = fmaf(x, kv[part + j * kThreadsPerRow][d], scores[j]);
    }
    __syncthreads();  // K has been read; V takes its place
    load_rows<T, kDim>(kv, [&](int key) { return cache_row(p.v_cache, key); });

    // The row's visible keys in this tile: [from, end), relative to the tile.
    int from = max(keys.first - tile_start, 0), end = min(keys.last + 1 - tile_start, kKeyTile);
    float tile_max = -INFINITY;
    UNROLL
    for (int j = 0; j < kKeysPerThread; j++) {
      int key = part + j * kThreadsPerRow;
      scores[j] *= p.scale;
      if (kVariant) scores[j] = cap_score(scores[j], p.softcap);
      if (key >= from && key < end) tile_max = fmaxf(tile_max, scores[j]);
    }
    tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, 1));
    tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, 2));
    float factor = 1.0f;
    if (from < end) factor = raise_max(softmax, tile_max);
    UNROLL
    for (int j = 0; j < kKeysPerThread; j++)
      weights[row][part + j * kThreadsPerRow] = expf(scores[j] - softmax.max);
    __syncthreads();

    if (from >= end) continue;  // this row sees no key of this tile: its sums stay as they are
    UNROLL
    for (int i = 0; i < kDim / kThreadsPerRow; i++) out[i] *= factor;
    for (int key = from; key < end; key++) {
      float weight = weights[row][key];
      softmax.sum += weight;
      UNROLL
      for (int i = 0; i < kDim / kThreadsPerRow; i++)
        out[i] = fmaf(weight, kv[key][part + i * kThreadsPerRow], out[i]);
    }
  }
  if (row >= tile.rows) return;
  T* to = static_cast<T*>(p.out) + (token * p.num_heads + head) * kDim;
  UNROLL
  for (int i = 0; i < kDim / kThreadsPerRow; i++)
    to[part + i * kThreadsPerRow] = from_float<T>(finished(out[i], softmax, keys));
}

}  // namespace

void attention_v2(const AttentionArgs& p, Stream stream) {
  if (p.sequences.num_tokens == 0) return;
  // Only the GPU knows how many rows each sequence has. This many tiles are enough in every case.
  dim3 grid(p.sequences.num_tokens / kRows + p.sequences.num_seqs, p.num_heads);
  with_number_type(p.dtype, [&](auto zero) {
    with_head_dim(p.head_dim, [&](auto dim) {
      using T = decltype(zero);
      constexpr int kDim = decltype(dim)::value;
      if (p.softcap > 0 || p.sinks)
        LAUNCH((attention_v2_kernel<T, kDim, true>), grid, kThreads, kDynamicBytes<kDim>, stream_of(stream), p);
      else
        LAUNCH((attention_v2_kernel<T, kDim, false>), grid, kThreads, kDynamicBytes<kDim>, stream_of(stream), p);
    });
  });
}

}  // namespace minillm::cuda
