// Decode attention, rung 1: one query row against all its keys; one block per sequence and head.
//
//     128 keys at a time        thread t: the whole score of key t, read directly from its page
//     [ 32 | 32 | 32 | 32 ]     warp w: the largest score of tile w
//       |    |    |    |
//       v    v    v    v        thread d: column d of the output, over the keys in order (with heads of
//                               256 also column d + 128)
//
// With a single row, each K and V element is read once and used once, so shared memory would not help; it holds
// only the 128 scores. Bytes: 2 * keys * head_dim elements per query head. FLOPs: 4 per pair of K and V
// elements. Limit: memory; with few sequences, the number of blocks. Left out: splitting a long sequence over
// several blocks.
//
// The order of every sum is that of attention_v2, tile by tile and key by key: a token has the same bits whether
// it was prefilled or decoded. For this reason one step of the softmax takes 32 keys, not 128.
// Predicted, H100: 357 us for 1 x 4096 keys (bytes in flight), 849 us for 32 x 4096 keys (instructions).

#include "paging.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTiles = kThreads / kKeyTile;  // tiles per iteration

template <int kDim>
constexpr int kColumns = kDim > kThreads ? kDim / kThreads : 1;  // columns of a thread

// The number of V rows that are loaded before the first one is used. It is a constant, so the loads are issued
// without a wait between them. 32 rows of float32 would not fit into the registers.
template <class T, int kDim>
constexpr int kAhead = (sizeof(T) == 2 ? kKeyTile : kKeyTile / 2) / kColumns<kDim>;

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

// Four blocks per multiprocessor leave 128 registers per thread. Without this bound ptxas targets more blocks and
// spills registers.
template <class T, int kDim, bool kVariant>
__global__ void __launch_bounds__(kThreads, 4) decode_d1_kernel(const __grid_constant__ AttentionArgs p) {
  static_assert(kDim <= kThreads || kDim % kThreads == 0, "threads share the columns evenly");
  static_assert(kTiles * 32 == kThreads, "a warp per tile");
  constexpr int kMine = kColumns<kDim>, kRows = kAhead<T, kDim>;
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

  for (int64_t token = row_start; token < row_end; token++) {  // one row in decode; any number works
    KeyRange keys = visible_keys(token - row_start, row_end - row_start, kv_len, p.window);
    UNROLL
    for (int c = 0; c < kMine; c++) {
      int d = thread + c * kThreads;
      if (d < kDim) q[d] = to_float(static_cast<const T*>(p.q)[token * p.q_stride + head * kDim + d]);
    }

    Softmax softmax = first_state<T, kVariant>(p, head);
    float out[kMine] = {};
    for (int start = keys.first / kKeyTile * kKeyTile; start <= keys.last; start += kThreads) {
      __syncthreads();  // q is written; the previous iteration's weights have been read
      int key = start + thread;
      bool visible = key >= keys.first && key <= keys.last;
      float mine = -INFINITY;
      if (visible) {
        slots[thread] = slot_of(p.sequences, sequence, key, p.block_size);
        mine = score<T, kDim>(q, cache_at(p.k_cache, slots[thread])) * p.scale;
        if (kVariant) mine = cap_score(mine, p.softcap);
      }
      float largest = mine;
      for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
      if (thread % 32 == 0) tile_max[thread / 32] = largest;
      __syncthreads();

      // The weights of tile w are relative to the maximum of all tiles up to and including w.
      float max_so_far = softmax.max;
      for (int tile = 0; tile <= thread / 32; tile++) max_so_far = fmaxf(max_so_far, tile_max[tile]);
      weights[thread] = expf(mine - max_so_far);
      __syncthreads();

      for (int tile = 0; tile < kTiles; tile++) {
        int tile_start = start + tile * kKeyTile;
        int from = max(keys.first, tile_start), end = min(keys.last + 1, tile_start + kKeyTile);
        if (from >= end) continue;
        float factor = raise_max(softmax, tile_max[tile]);
        UNROLL
        for (int c = 0; c < kMine; c++) out[c] *= factor;
        if (thread >= kDim) continue;  // this thread has no column; it only keeps `softmax` up to date
        UNROLL
        for (int first = 0; first < kKeyTile; first += kRows) {
          T v[kRows][kMine];
          UNROLL
          for (int i = 0; i < kRows; i++) {
            int k = tile_start + first + i;
            UNROLL
            for (int c = 0; c < kMine; c++)
              if (k >= from && k < end) v[i][c] = cache_at(p.v_cache, slots[k - start])[thread + c * kThreads];
          }
          __syncwarp();  // orders nothing that matters: ptxas would wait for the first rows before it loads the last
          UNROLL
          for (int i = 0; i < kRows; i++) {
            int k = tile_start + first + i;
            if (k < from || k >= end) continue;
            softmax.sum += weights[k - start];
            UNROLL
            for (int c = 0; c < kMine; c++) out[c] = fmaf(weights[k - start], to_float(v[i][c]), out[c]);
          }
        }
      }
    }
    UNROLL
    for (int c = 0; c < kMine; c++) {
      int d = thread + c * kThreads;
      if (d < kDim) static_cast<T*>(p.out)[(token * p.num_heads + head) * kDim + d] = from_float<T>(finished(out[c], softmax, keys));
    }
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
      if (p.softcap > 0 || p.sinks)
        LAUNCH((decode_d1_kernel<T, kDim, true>), grid, kThreads, 0, stream_of(stream), p);
      else
        LAUNCH((decode_d1_kernel<T, kDim, false>), grid, kThreads, 0, stream_of(stream), p);
    });
  });
}

bool supports_head_dim(int head_dim) {
  bool supported = false;
  with_head_dim(head_dim, [&](auto) { supported = true; });
  return supported;
}

}  // namespace minillm::cuda
