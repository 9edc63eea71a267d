// Tiles of attention_v4: how one warp brings K and V, and how a warpgroup multiplies them.
//
//     tile [64, kDim]    blocks of 64 columns; a block is 64 rows of 128 bytes, swizzled (Swizzle::bytes128)
//
//     whole tile, pages that fit    tensor copies: a box for each page and block of columns      full: bytes
//     last tile, or other pages     cp.async, 16 bytes at a time; keys that are not there are    full: an arrival
//                                   zeros, since 0 times a NaN that somebody left would be NaN
//
// A page [block_size, num_kv_heads, head_dim] fits if its size divides 64 or is a multiple of it. A box has 64
// columns of one head: the tensor is seen as [slots, num_kv_heads, head_dim].
//
//     Q K^T    K from shared memory, keys are columns of the product: Major::k
//     P V      V from shared memory, keys are rows: Major::mn; P is what a lane has of the scores
//
// The sums are those of tensor_tile.h: 16 numbers of k at a time, in order. Source: PTX ISA, wgmma and
// cp.async.bulk.tensor; Shah et al., FlashAttention-3 (arXiv 2407.08608).

#pragma once

#include "dialect_hopper.h"
#include "tensor_tile.h"

namespace minillm::cuda {

struct HopperArgs {
  TensorMap k_map, v_map;
  int box_rows;  // slots of a box; 0: pages do not fit
  AttentionArgs attention;
};

constexpr int kBlockColumns = 64, kBlockSize = kTileKeys * kBlockColumns;  // numbers
constexpr int kPatternBytes = 1024;                                       // 8 rows of a block

// Where chunk `chunk` of a row lies in a tile.
__device__ __forceinline__ int hopper_place(int row, int chunk) {
  return chunk / 8 * kBlockSize + row * kBlockColumns + (chunk % 8 ^ row % 8) * kWide;
}

// ---- the warp that copies -----------------------------------------------------------------------

template <class T, int kDim>
class Producer {
 public:
  static constexpr int kTileSize = kTileKeys * kDim;  // numbers
  static constexpr unsigned kBytes = 2 * kTileSize * sizeof(T);

  __device__ __forceinline__ Producer(const HopperArgs& args, const PackedRows& rows)
      : args_(args), p_(args.attention), rows_(rows), lane_(threadIdx.x % 32) {}

  // Brings K to k and V behind it. `full` is complete when they are there.
  __device__ __forceinline__ void bring(int tile, T* k, Mbarrier& full) const {
    if (args_.box_rows && (tile + 1) * kTileKeys <= rows_.kv_len)
      bring_boxes(tile, k, full);
    else
      bring_rows(tile, k, full);
  }

 private:
  __device__ __forceinline__ void bring_boxes(int tile, T* k, Mbarrier& full) const {
    if (lane_ == 0) mbarrier_arrive_expect(full, kBytes);
    for (int row = lane_ * args_.box_rows; row < kTileKeys; row += 32 * args_.box_rows) {
      int slot = static_cast<int>(slot_of(p_.sequences, rows_.sequence, tile * kTileKeys + row, p_.block_size));
      UNROLL
      for (int block = 0; block < kDim / kBlockColumns; block++) {
        int at[3] = {block * kBlockColumns, rows_.kv_head, slot};
        T* to = k + block * kBlockSize + row * kBlockColumns;
        tensor_copy(to, args_.k_map, at, full);
        tensor_copy(to + kTileSize, args_.v_map, at, full);
      }
    }
  }

  __device__ __forceinline__ void bring_rows(int tile, T* k, Mbarrier& full) const {
    constexpr int kChunks = kDim / kWide;
    for (int i = lane_; i < kTileKeys * kChunks; i += 32) {
      int row = i / kChunks, chunk = i % kChunks, key = tile * kTileKeys + row;
      bool inside = key < rows_.kv_len;
      int64_t slot = inside ? slot_of(p_.sequences, rows_.sequence, key, p_.block_size) : 0;
      int64_t from = (slot * p_.num_kv_heads + rows_.kv_head) * kDim + chunk * kWide;
      T* to = k + hopper_place(row, chunk);
      copy_async_or_zero(to, static_cast<const T*>(p_.k_cache) + from, inside);
      copy_async_or_zero(to + kTileSize, static_cast<const T*>(p_.v_cache) + from, inside);
    }
    commit_copies();
    wait_copies<0>();
    fence_proxy_async();  // wgmma sees what cp.async wrote
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(full);
  }

  const HopperArgs& args_;
  const AttentionArgs& p_;
  const PackedRows& rows_;
  int lane_;
};

// ---- a warpgroup that multiplies ----------------------------------------------------------------

// 64 keys more for the warpgroup's 64 rows. As add_tile (tensor_tile.h), with the same sums.
template <class T, int kDim>
__device__ __forceinline__ void add_hopper_tile(Part<kDim>& to, const Query<T, kDim>& query, const T* k, const T* v, int start,
                                                float scale) {
  float scores[kTileKeys / 8][4] = {};
  wgmma_fence(scores);
  UNROLL
  for (int step = 0; step < kDim / 16; step++) {
    const T* from = k + step / 4 * kBlockSize + step % 4 * 16;
    wgmma<T, Major::k>(scores, query.q[step].v, matrix_descriptor(from, 0, kPatternBytes, Swizzle::bytes128));
  }
  wgmma_commit();
  wgmma_wait<0>(scores);

  weigh(to, query, scores, start, scale);
  Vec<T, 8> weights[kTileKeys / 16];
  UNROLL
  for (int i = 0; i < kTileKeys / 2; i++) weights[i / 8].v[i % 8] = from_float<T>(scores[i / 4][i % 4]);

  constexpr int kBlockBytes = kBlockSize * static_cast<int>(sizeof(T));
  wgmma_fence(to.out);
  UNROLL
  for (int step = 0; step < kTileKeys / 16; step++) {
    const T* from = v + step * 16 * kBlockColumns;
    wgmma<T, Major::mn>(to.out, weights[step].v, matrix_descriptor(from, kBlockBytes, kPatternBytes, Swizzle::bytes128));
  }
  wgmma_commit();
  wgmma_wait<0>(to.out);
}

}  // namespace minillm::cuda
