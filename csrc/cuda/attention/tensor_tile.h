// Attention on tensor cores: the one tile function of attention_v3, decode_d2 and decode_d3, and how tiles arrive.
//
//     rows      query heads that share a kv head, packed: row = token * group + head of the group. A warp
//               has 16 of them, the rows of an mma
//     tile      64 keys, from a multiple of 64 in the sequence        Q K^T, softmax, P V
//     split     512 keys, from a multiple of 512: eight tiles         (largest score, sum, output)
//
//     keys   0      64     128  ...  512                1024
//            | tile | tile |    ...   | tile |    ...    |
//            |------- split 0 --------|---- split 1 -----|
//                    part 0        +         part 1         merged in this order
//
// Tiles and splits lie at fixed places in the sequence, and each row is merged by the same arithmetic whether
// one block walks over all splits (v3, d2) or each split has a block (d3). splits.h merges them. So a row's bits depend on its own query
// and keys alone (contract C2). A tile that a row does not see changes nothing in it: every weight is exactly
// 0, and every factor exactly 1.
//
// Scores are kept in units of log2: exp(s) is 2^(s * log2 e), and the chip computes 2^x.
// Source: Dao, FlashAttention-2 (arXiv 2307.08691); splits: Dao et al., Flash-Decoding (2023).

#pragma once

#include "paging.h"

namespace minillm::cuda {

constexpr int kTileKeys = 64;
constexpr int kSplitKeys = 512;
constexpr int kWarpRows = 16;
constexpr int kWide = 8;  // numbers in 16 bytes: a chunk, the unit of copies and of ldmatrix

// Where chunk `chunk` of a row of a tile lies. Neighbouring rows have their chunks in another order, so that the
// same chunk of eight rows, which is what ldmatrix reads at once, lies in all 32 banks.
constexpr int kSwizzled = 8;  // rows; 1 would be none

template <int kDim>
__device__ __forceinline__ int place(int row, int chunk) {
  return row * kDim + (chunk ^ row % kSwizzled) * kWide;
}

// The packed rows of one kv head of one sequence.
struct PackedRows {
  int sequence, kv_head, group, token_start, q_len, kv_len, window;

  __device__ __forceinline__ PackedRows(const AttentionArgs& p, int sequence, int kv_head)
      : sequence(sequence), kv_head(kv_head), group(p.num_heads / p.num_kv_heads),
        token_start(p.sequences.query_start[sequence]), q_len(p.sequences.query_start[sequence + 1] - token_start),
        kv_len(p.sequences.kv_len[sequence]), window(p.window) {}

  __device__ __forceinline__ int count() const { return q_len * group; }
  __device__ __forceinline__ KeyRange keys(int row) const {
    return visible_keys(row / group, q_len, kv_len, window);
  }
  // The row's number among all rows of all sequences, [num_tokens, num_heads].
  __device__ __forceinline__ int64_t flat(int row, int num_heads) const {
    return static_cast<int64_t>(token_start + row / group) * num_heads + kv_head * group + row % group;
  }
};

// Two rows of 16 in a lane's registers: row lane / 4, and the one eight further down.
template <class T, int kDim>
struct Query {
  Vec<T, 8> q[kDim / 16];
  KeyRange keys[2];
  int all_first, all_last;  // keys that each of the warp's rows sees

  // Rows from `count` on, which are not there, walk along with the last one.
  __device__ __forceinline__ Query(const AttentionArgs& p, const PackedRows& rows, int first, int count) {
    int lane = threadIdx.x % 32;
    UNROLL
    for (int i = 0; i < 2; i++) {
      int row = min(first + lane / 4 + 8 * i, count - 1);
      keys[i] = rows.keys(row);
      const T* from = static_cast<const T*>(p.q) + (rows.token_start + row / rows.group) * p.q_stride +
                      (rows.kv_head * rows.group + row % rows.group) * kDim + lane % 4 * 2;
      UNROLL
      for (int j = 0; j < kDim / 8; j++) {
        Vec<T, 2> pair = load_wide<Vec<T, 2>>(from + 8 * j);
        q[j / 2].v[j % 2 * 4 + 2 * i] = pair.v[0];
        q[j / 2].v[j % 2 * 4 + 2 * i + 1] = pair.v[1];
      }
    }
    all_first = rows.keys(min(first + kWarpRows, count) - 1).first;
    all_last = rows.keys(min(first, count - 1)).last;
  }
};

// What is known of a lane's two rows after some keys: paging.h's Softmax, and the output relative to its max.
template <int kDim>
struct Part {
  Softmax softmax[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
  float out[kDim / 8][4] = {};  // columns 8 j + t and its neighbour, of both rows; t = 2 * (lane % 4)
};

// Turns the scores of 64 keys, from `start` on, into weights, and rescales what `to` has so far.
template <class T, int kDim>
__device__ __forceinline__ void weigh(Part<kDim>& to, const Query<T, kDim>& query, float (&scores)[kTileKeys / 8][4], int start,
                                      float scale) {
  int lane = threadIdx.x % 32;
  UNROLL
  for (int i = 0; i < kTileKeys / 2; i++) scores[i / 4][i % 4] *= scale;
  if (start < query.all_first || start + kTileKeys - 1 > query.all_last) {  // few tiles: not all rows see all of it
    UNROLL
    for (int i = 0; i < kTileKeys / 2; i++) {
      int key = start + i / 4 * 8 + lane % 4 * 2 + i % 2;
      KeyRange keys = query.keys[i % 4 / 2];
      if (key < keys.first || key > keys.last) scores[i / 4][i % 4] = -INFINITY;
    }
  }
  UNROLL
  for (int i = 0; i < 2; i++) {
    float largest = -INFINITY;
    UNROLL
    for (int j = 0; j < kTileKeys / 4; j++) largest = fmaxf(largest, scores[j / 2][2 * i + j % 2]);
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
    Softmax& softmax = to.softmax[i];
    float before = softmax.max;
    softmax.max = fmaxf(before, largest);
    float base = softmax.max == -INFINITY ? 0.0f : softmax.max;  // nothing seen yet: weights are 2^-inf, not NaN
    float factor = exp2_approx(before - base);
    softmax.sum *= factor;
    UNROLL
    for (int j = 0; j < kTileKeys / 4; j++) {
      float& score = scores[j / 2][2 * i + j % 2];
      score = exp2_approx(score - base);
      softmax.sum += score;  // of this lane's keys; `finish` adds up the row's four lanes
    }
    UNROLL
    for (int j = 0; j < kDim / 4; j++) to.out[j / 2][2 * i + j % 2] *= factor;
  }
}

// 64 keys more. `k` and `v` [64, kDim] are in shared memory, the first key is `start`.
template <class T, int kDim>
__device__ __forceinline__ void add_tile(Part<kDim>& to, const Query<T, kDim>& query, const T* k, const T* v, int start,
                                         float scale) {
  int lane = threadIdx.x % 32;
  float scores[kTileKeys / 8][4] = {};
  int k_at = place<kDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);  // two times eight keys, two chunks
  UNROLL
  for (int step = 0; step < kDim / 16; step++)
    UNROLL
    for (int j = 0; j < kTileKeys / 8; j += 2) {
      Vec<T, 8> both;
      load_matrices<4>(both.v, k + (k_at ^ 2 * step * kWide) + 8 * j * kDim);
      Vec<T, 4> b[2];
      UNROLL
      for (int i = 0; i < 8; i++) b[i / 4].v[i % 4] = both.v[i];
      mma_m16n8k16(scores[j], query.q[step].v, b[0].v);
      mma_m16n8k16(scores[j + 1], query.q[step].v, b[1].v);
    }

  weigh(to, query, scores, start, scale);

  int v_at = place<kDim>(lane % 16, lane / 16);  // 16 keys, two chunks
  UNROLL
  for (int step = 0; step < kTileKeys / 16; step++) {
    Vec<T, 8> weights;  // what a lane has of the scores is what mma wants of the weights
    UNROLL
    for (int i = 0; i < 8; i++) weights.v[i] = from_float<T>(scores[2 * step + i / 4][i % 4]);
    UNROLL
    for (int j = 0; j < kDim / 8; j += 2) {
      Vec<T, 8> both;
      load_matrices_transposed<4>(both.v, v + (v_at ^ j * kWide) + 16 * step * kDim);
      Vec<T, 4> b[2];
      UNROLL
      for (int i = 0; i < 8; i++) b[i / 4].v[i % 4] = both.v[i];
      mma_m16n8k16(to.out[j], weights.v, b[0].v);
      mma_m16n8k16(to.out[j + 1], weights.v, b[1].v);
    }
  }
}

// How a block brings tiles to shared memory: each warp the same share of every tile's keys.
template <class T, int kDim, int kWarps, int kStages>
class Ring {
 public:
  static constexpr int kTileSize = kTileKeys * kDim, kSize = kStages * 2 * kTileSize;  // numbers
  static constexpr int kBytes = kSize * static_cast<int>(sizeof(T));

  __device__ __forceinline__ Ring(const AttentionArgs& p, const PackedRows& rows, T* memory)
      : p_(p), rows_(rows), memory_(memory), row_bytes_(p.num_kv_heads * kDim * static_cast<int>(sizeof(T))) {
    int lane = threadIdx.x % 32, chunk = lane % kChunks, column = rows.kv_head * kDim + chunk * kWide;
    k_from_ = static_cast<const char*>(p.k_cache) + column * sizeof(T);
    v_from_ = static_cast<const char*>(p.v_cache) + column * sizeof(T);
    at_ = place<kDim>(threadIdx.x / 32 * kKeys + lane / kChunks, chunk);
  }

  // use(k, v, tile) for the tiles first..last, in order, while kStages - 1 later ones are on their way.
  template <class Use>
  __device__ __forceinline__ void walk(int first, int last, Use use) {
    int stage = 0, free_stage = kStages - 1;
    find_slots(first);
    for (int i = 0; i < kStages - 1; i++) copy(first + i, last, i);
    for (int tile = first; tile <= last; tile++) {
      wait_copies<kStages - 2>();
      __syncthreads();  // everybody's copies of this tile have arrived, and the tile before has been used
      copy(tile + kStages - 1, last, free_stage);
      use(memory_ + stage * 2 * kTileSize, memory_ + (stage * 2 + 1) * kTileSize, tile);
      free_stage = stage;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
  }

 private:
  static constexpr int kKeys = kTileKeys / kWarps, kChunks = kDim / kWide, kRowsAtOnce = 32 / kChunks;

  // Lane i looks up the slots of the warp's i-th key and of the 32nd after it; those after the end have none.
  __device__ __forceinline__ void find_slots(int tile) {
    UNROLL
    for (int i = 0; i < kSlots; i++) {
      int key = tile * kTileKeys + threadIdx.x / 32 * kKeys + 32 * i + threadIdx.x % 32 % kKeys;
      slots_[i] = key < rows_.kv_len ? static_cast<int>(slot_of(p_.sequences, rows_.sequence, key, p_.block_size)) : -1;
    }
  }

  // One group of copies, empty after the last tile: waiting counts groups. A key that is not there becomes zeros,
  // since 0 times a NaN that somebody left in its slot would be NaN. Leaves the next tile's slots behind.
  __device__ __forceinline__ void copy(int tile, int last, int stage) {
    if (tile <= last) {
      T* k = memory_ + stage * 2 * kTileSize;
      UNROLL
      for (int i = 0; i < kKeys; i += kRowsAtOnce) {
        int slot = __shfl_sync(0xffffffff, slots_[i / 32], i % 32 + threadIdx.x % 32 / kChunks);
        int64_t from = static_cast<int64_t>(slot) * row_bytes_;
        T* to = k + (at_ ^ i % kSwizzled * kWide) + i * kDim;  // no carry: the place of the row i further down
        copy_async_or_zero(to, k_from_ + from, slot >= 0);
        copy_async_or_zero(to + kTileSize, v_from_ + from, slot >= 0);
      }
      find_slots(tile + 1);
    }
    commit_copies();
  }

  static constexpr int kSlots = (kKeys + 31) / 32;
  const AttentionArgs& p_;
  const PackedRows& rows_;
  T* memory_;
  const char *k_from_, *v_from_;  // this lane's chunk of slot 0
  int row_bytes_, at_;            // from slot to slot; the place of the chunk of the first row the lane copies
  int slots_[kSlots];
};

__device__ __forceinline__ float log2_scale(const AttentionArgs& p) { return p.scale * 1.4426950408889634f; }

// bfloat16 and float16, heads of 64 and 128.
template <class F>
void with_tensor_types(const AttentionArgs& p, F f) {
  auto with_dim = [&](auto zero) {
    if (p.head_dim == 64) f(zero, std::integral_constant<int, 64>{});
    if (p.head_dim == 128) f(zero, std::integral_constant<int, 128>{});
  };
  if (p.dtype == DType::bf16) with_dim(bfloat16{});
  if (p.dtype == DType::f16) with_dim(float16{});
}

}  // namespace minillm::cuda
