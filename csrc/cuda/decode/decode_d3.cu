// Decode attention, rung 3: decode_d2 with a block for every 512 keys. Two kernels.
//
//     keys    |-- split 0 --|-- split 1 --|-- split 2 --|     a warp each: 16 packed rows, which are the query
//                  part          part          part           heads of a group (and the drafted tokens)
//                    \____________ | ____________/
//                              combine                        a warp per row, parts in order
//
// One sequence then keeps kv_len / 512 times its kv heads of blocks busy, where d2 had one per kv head. Each block has the tile after the present one on its way: 32 KB where head_dim is
// 128, three blocks to a multiprocessor, several times what bandwidth times latency asks for.
//
// Bytes: 2 * keys * head_dim elements per kv head, and head_dim + 2 floats per row and split, written and read.
// FLOPs: 4 * head_dim * 16 per key and kv head, most of them for rows that are not there. Limit: memory.
// The arithmetic is attention_v3's (tensor_tile.h): a token has the same bits, prefilled or decoded.
// Predicted, H100: 22.1 us for 1 x 4096 keys (latency of instructions), 209 us for 32 x 4096 keys (DRAM).

#include "splits.h"

namespace minillm::cuda {
namespace {

constexpr int kStages = 2;
constexpr int kCombineWarps = 4;
constexpr int kAhead = 8;  // splits whose parts are loaded before the first is merged

template <class T, int kDim>
__global__ void __launch_bounds__(32) decode_d3_kernel(const __grid_constant__ AttentionArgs p,
                                                       const __grid_constant__ SplitScratch scratch) {
  DYNAMIC_SHARED(T, memory);
  PackedRows rows(p, blockIdx.x, blockIdx.y);
  int split = blockIdx.z, lane = threadIdx.x % 32;
  float scale = log2_scale(p);
  Ring<T, kDim, 1, kStages> ring(p, rows, memory);
  for (int first_row = 0; first_row < rows.count(); first_row += kWarpRows) {
    int count = min(rows.count(), first_row + kWarpRows);
    int first = max(rows.keys(first_row).first, split * kSplitKeys);
    int last = min(rows.keys(count - 1).last, split * kSplitKeys + kSplitKeys - 1);
    if (first > last) continue;  // none of the rows sees a key of this split
    __syncthreads();             // the rows before are done with shared memory
    Query<T, kDim> query(p, rows, first_row, count);
    Part<kDim> part;
    ring.walk(first / kTileKeys, last / kTileKeys, [&](const T* k, const T* v, int tile) {
      add_tile(part, query, k, v, tile * kTileKeys, scale);
    });
    finish(part);
    UNROLL
    for (int i = 0; i < 2; i++) {
      int row = first_row + lane / 4 + 8 * i;
      if (row >= count) continue;
      int64_t at = static_cast<int64_t>(split) * p.sequences.num_tokens * p.num_heads + rows.flat(row, p.num_heads);
      if (lane % 4 == 0) store_wide(scratch.softmax + 2 * at, part.softmax[i]);
      UNROLL
      for (int j = 0; j < kDim / 8; j++) {
        const float* out = part.out[j] + 2 * i;
        store_wide(scratch.out + at * kDim + 8 * j + lane % 4 * 2, Vec<float, 2>{{out[0], out[1]}});
      }
    }
  }
}

// The last sequence that begins at or before `token`.
__device__ __forceinline__ int sequence_of(const Sequences& s, int token) {
  int found = 0, end = s.num_seqs;
  while (end - found > 1) {
    int middle = (found + end) / 2;
    if (s.query_start[middle] <= token)
      found = middle;
    else
      end = middle;
  }
  return found;
}

template <class T, int kDim>
__global__ void __launch_bounds__(32 * kCombineWarps)
    decode_d3_combine_kernel(const __grid_constant__ AttentionArgs p, const __grid_constant__ SplitScratch scratch) {
  using Columns = Vec<float, kDim / 32>;
  int64_t rows = static_cast<int64_t>(p.sequences.num_tokens) * p.num_heads;
  int64_t row = static_cast<int64_t>(blockIdx.x) * kCombineWarps + threadIdx.x / 32;
  if (row >= rows) return;
  int token = static_cast<int>(row / p.num_heads), sequence = sequence_of(p.sequences, token);
  int start = p.sequences.query_start[sequence], q_len = p.sequences.query_start[sequence + 1] - start;
  KeyRange keys = visible_keys(token - start, q_len, p.sequences.kv_len[sequence], p.window);
  int column = threadIdx.x % 32 * (kDim / 32), last = keys.last < 0 ? -1 : keys.last / kSplitKeys;

  Softmax softmax = {-INFINITY, 0.0f};
  Columns out = {};
  for (int first = keys.first / kSplitKeys; first <= last; first += kAhead) {
    Softmax part_softmax[kAhead];
    Columns part_out[kAhead];
    UNROLL
    for (int i = 0; i < kAhead; i++) {
      if (first + i > last) continue;
      int64_t at = (first + i) * rows + row;
      part_softmax[i] = load_wide<Softmax>(scratch.softmax + 2 * at);
      part_out[i] = load_wide<Columns>(scratch.out + at * kDim + column);
    }
    UNROLL
    for (int i = 0; i < kAhead; i++) {
      if (first + i > last) continue;
      Factors by = merge(softmax, part_softmax[i]);
      UNROLL
      for (int j = 0; j < kDim / 32; j++) out.v[j] = merged(out.v[j], part_out[i].v[j], by);
    }
  }
  float inverse = inverse_sum(softmax, keys);
  Vec<T, kDim / 32> result;
  UNROLL
  for (int j = 0; j < kDim / 32; j++) result.v[j] = from_float<T>(out.v[j] * inverse);
  store_wide(static_cast<T*>(p.out) + row * kDim + column, result);
}

}  // namespace

int num_splits(int max_kv_len) { return ceil_div(max_kv_len, kSplitKeys); }

void decode_d3(const AttentionArgs& p, const SplitScratch& scratch, Stream stream) {
  if (p.sequences.num_tokens == 0) return;
  dim3 grid(p.sequences.num_seqs, p.num_kv_heads, scratch.splits);
  int64_t rows = int64_t{1} * p.sequences.num_tokens * p.num_heads;
  with_tensor_types(p, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    cudaStream_t s = stream_of(stream);
    constexpr int kBytes = Ring<T, kDim, 1, kStages>::kBytes;
    LAUNCH((decode_d3_kernel<T, kDim>), grid, 32, kBytes, s, p, scratch);
    dim3 combine(static_cast<unsigned>(ceil_div(rows, int64_t{kCombineWarps})));
    LAUNCH((decode_d3_combine_kernel<T, kDim>), combine, 32 * kCombineWarps, 0, s, p, scratch);
  });
}

}  // namespace minillm::cuda
