// Attention, rung 3: tensor cores. A block has 128 packed rows and walks over their keys, 64 at a time.
//
//     K, V  | tile n | tile n + 1 |   shared memory, swizzled: while one tile is multiplied, the next is on
//             =====    -------->      its way (cp.async)
//     8 warps of 16 rows: Q, scores, weights and output never leave registers (tensor_tile.h)
//
// The keys are summed split by split, and each split is merged into the output so far: a second set of
// accumulators, the price of having decode_d3's bits (contract C2). It is touched once in 512 keys, so it lies in
// shared memory, where no thread reads another's numbers; registers would spill.
//
// Bytes: K and V once per block that visits them, q_len * group / 128 times at most; heads of a group share
// them. FLOPs: 4 * head_dim per visible (row, key). Limit: tensor cores and shared memory: each warp reads each
// tile for 16 rows alone. Left out: wgmma and TMA; softmax of one tile under the multiplications of another.
// Predicted, H100: 37.0 us for 1024 tokens (shared memory), 1.22 ms for 8192 tokens (shared memory).

#include "query_tiles.h"
#include "splits.h"

namespace minillm::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = kWarpRows * kWarps;
constexpr int kStages = 2;

template <class T, int kDim>
constexpr int kSharedBytes = Ring<T, kDim, kWarps, kStages>::kBytes + Whole<kDim, kThreads>::kBytes;

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) attention_v3_kernel(const __grid_constant__ AttentionArgs p) {
  DYNAMIC_SHARED(T, memory);
  RowTile tile = find_tile<kRows>(p.sequences, p.num_heads / p.num_kv_heads);
  if (tile.sequence < 0) return;  // the whole block: nobody waits at a barrier below
  PackedRows rows(p, tile.sequence, blockIdx.y);
  int count = min(rows.count(), tile.first_row + kRows);
  int first_row = tile.first_row + threadIdx.x / 32 * kWarpRows;  // of the warp
  Query<T, kDim> query(p, rows, first_row, count);
  int warp_last = rows.keys(min(first_row + kWarpRows, count) - 1).last;
  int first_tile = rows.keys(tile.first_row).first / kTileKeys, last_tile = rows.keys(count - 1).last / kTileKeys;

  float scale = log2_scale(p);
  Ring<T, kDim, kWarps, kStages> ring(p, rows, memory);
  Whole<kDim, kThreads> whole(reinterpret_cast<float*>(memory + ring.kSize));
  Part<kDim> part;
  ring.walk(first_tile, last_tile, [&](const T* k, const T* v, int key_tile) {
    if (key_tile * kTileKeys <= warp_last) add_tile(part, query, k, v, key_tile * kTileKeys, scale);
    if (ends_split(key_tile) || key_tile == last_tile) whole.add(part);
  });
  whole.template store<T>(p, rows, first_row, count);
}

}  // namespace

void attention_v3(const AttentionArgs& p, Stream stream) {
  if (p.sequences.num_tokens == 0) return;
  with_tensor_types(p, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    constexpr int kBytes = kSharedBytes<T, kDim>;
    LAUNCH((attention_v3_kernel<T, kDim>), tile_grid<kRows>(p), kThreads, kBytes, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
