// Decode attention, rung 1: one row, all its keys; one block per sequence and head.
//
//     128 keys at a time        thread t: the whole score of key t, read straight from its page
//     [ 32 | 32 | 32 | 32 ]     warp w: the largest score of tile w
//       |    |    |    |
//       v    v    v    v        thread d: column d of the output, over the keys in order
//
// A single row has nobody to share K and V with: each is read once, used once and forgotten, so shared
// memory holds only the 128 scores. Bytes: 2 * keys * head_dim elements per query head. FLOPs: 4 per
// pair of K and V elements, far below what the chip could do: the limit is memory, and with few
// sequences the number of blocks, since nobody helps with a long one (splitting it is a later rung).
//
// The order of every sum is attention_v2's, tile by tile and key by key, so a token has the same bits
// whether it was prefilled or decoded. That is why 32 keys are one step of the softmax and not 128.

#include "paging.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTiles = kThreads / kKeyTile;  // tiles per round

// Keys whose V is on its way before the first is used. A constant, so that the loads are issued one after
// the other without a wait; 32 of float32 would not fit the registers.
template <class T>
constexpr int kAhead = sizeof(T) == 2 ? kKeyTile : kKeyTile / 2;

template <class T, int kDim>
__device__ __forceinline__ float score(const float* q, const T* key) {
  constexpr int kWide = 16 / sizeof(T);
  float sum = 0;
  for (int d = 0; d < kDim; d += kWide) {
    Vec<T, kWide> k = load_wide<Vec<T, kWide>>(key + d);
    UNROLL
    for (int j = 0; j < kWide; j++) sum = fmaf(q[d + j], to_float(k.v[j]), sum);
  }
  return sum;
}

// Four blocks per multiprocessor leave each thread 128 registers; unasked, ptxas aims at more and spills.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 4) decode_d1_kernel(const __grid_constant__ AttentionArgs p) {
  static_assert(kDim <= kThreads && kTiles * 32 == kThreads, "a column per thread, a warp per tile");
  SHARED(float, q, [kDim]);
  SHARED(float, weights, [kThreads]);
  SHARED(float, tile_max, [kTiles]);
  SHARED(int64_t, slots, [kThreads]);

  int sequence = blockIdx.x, head = blockIdx.y, kv_head = head / (p.num_heads / p.num_kv_heads);
  int row_start = p.sequences.query_start[sequence], row_end = p.sequences.query_start[sequence + 1];
  int kv_len = p.sequences.kv_len[sequence], thread = threadIdx.x;
  auto cache_at = [&](const void* cache, int64_t slot) {
    return static_cast<const T*>(cache) + (slot * p.num_kv_heads + kv_head) * kDim;
  };

  for (int64_t token = row_start; token < row_end; token++) {  // decode has one; any number is right
    KeyRange keys = visible_keys(token - row_start, row_end - row_start, kv_len, p.window);
    if (thread < kDim) q[thread] = to_float(static_cast<const T*>(p.q)[token * p.q_stride + head * kDim + thread]);

    Softmax softmax = {-INFINITY, 0.0f};
    float out = 0;
    for (int start = keys.first / kKeyTile * kKeyTile; start <= keys.last; start += kThreads) {
      __syncthreads();  // q is there; the scores of the round before have been used
      int key = start + thread;
      bool visible = key >= keys.first && key <= keys.last;
      float mine = -INFINITY;
      if (visible) {
        slots[thread] = slot_of(p.sequences, sequence, key, p.block_size);
        mine = score<T, kDim>(q, cache_at(p.k_cache, slots[thread])) * p.scale;
      }
      float largest = mine;
      for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
      if (thread % 32 == 0) tile_max[thread / 32] = largest;
      __syncthreads();

      // The maximum that tile w's keys are measured against is that of all tiles up to w.
      float max_so_far = softmax.max;
      for (int tile = 0; tile <= thread / 32; tile++) max_so_far = fmaxf(max_so_far, tile_max[tile]);
      weights[thread] = expf(mine - max_so_far);
      __syncthreads();

      for (int tile = 0; tile < kTiles; tile++) {
        int tile_start = start + tile * kKeyTile;
        int from = max(keys.first, tile_start), end = min(keys.last + 1, tile_start + kKeyTile);
        if (from >= end) continue;
        out *= raise_max(softmax, tile_max[tile]);
        if (thread >= kDim) continue;  // no column is left for this thread, but it keeps the maximum
        UNROLL
        for (int first = 0; first < kKeyTile; first += kAhead<T>) {
          T v[kAhead<T>];
          UNROLL
          for (int i = 0; i < kAhead<T>; i++) {
            int k = tile_start + first + i;
            if (k >= from && k < end) v[i] = cache_at(p.v_cache, slots[k - start])[thread];
          }
          UNROLL
          for (int i = 0; i < kAhead<T>; i++) {
            int k = tile_start + first + i;
            if (k < from || k >= end) continue;
            softmax.sum += weights[k - start];
            out = fmaf(weights[k - start], to_float(v[i]), out);
          }
        }
      }
    }
    if (thread < kDim)
      static_cast<T*>(p.out)[(token * p.num_heads + head) * kDim + thread] = from_float<T>(out / softmax.sum);
  }
}

}  // namespace

void decode_d1(const AttentionArgs& p, Stream stream) {
  if (p.sequences.num_tokens == 0) return;
  dim3 grid(p.sequences.num_seqs, p.num_heads);
  with_number_type(p.dtype, [&](auto zero) {
    with_head_dim(p.head_dim, [&](auto dim) {
      using T = decltype(zero);
      constexpr int kDim = decltype(dim)::value;
      LAUNCH((decode_d1_kernel<T, kDim>), grid, kThreads, 0, stream_of(stream), p);
    });
  });
}

bool supports_head_dim(int head_dim) {
  bool supported = false;
  with_head_dim(head_dim, [&](auto) { supported = true; });
  return supported;
}

}  // namespace minillm::cuda
