// Decode attention, rung 2: tensor cores. A warp for each sequence and kv head; K and V are read once for the whole group.
//
//     query heads of a group     16 rows of an mma: with 4 heads to a kv head, 4 of them are used
//     keys                       | tile | tile | ...       64 at a time; while one is multiplied, the next is on its way
//
// d1 has a block for each query head, so it reads K and V once for each head of a group. Here a tile is read once, and
// its products are made by tensor cores. Bytes: 2 * keys * head_dim elements per kv head. FLOPs: 4 * head_dim * 16 per
// key and kv head, most of them for rows that are not there.
//
// Limit: the number of warps. A few sequences leave most multiprocessors without a block: one sequence with 8 kv heads
// has 8 warps, for 132 of them, and each walks over all keys alone. Left out: splitting the keys over blocks (d3). The arithmetic is attention_v3's (tensor_tile.h), split by split: the bits are the same.
// Predicted, H100: 85.6 us for 1 x 4096 keys (latency of instructions), 203 us for 32 x 4096 keys (DRAM).

#include "splits.h"

namespace minillm::cuda {
namespace {

constexpr int kStages = 2;

// Six blocks for each multiprocessor: without a number ptxas aims at more, and spills registers for heads of 64.
template <class T, int kDim>
__global__ void __launch_bounds__(32, 6) decode_d2_kernel(const __grid_constant__ AttentionArgs p) {
  DYNAMIC_SHARED(T, memory);
  SHARED(float, outputs, [kDim / 2 * 32]);
  PackedRows rows(p, blockIdx.x, blockIdx.y);
  float scale = log2_scale(p);
  Ring<T, kDim, 1, kStages> ring(p, rows, memory);
  for (int first_row = 0; first_row < rows.count(); first_row += kWarpRows) {
    int count = min(rows.count(), first_row + kWarpRows);
    int first = rows.keys(first_row).first / kTileKeys, last = rows.keys(count - 1).last / kTileKeys;
    __syncthreads();  // the rows before are done with shared memory
    Query<T, kDim> query(p, rows, first_row, count);
    Whole<kDim, 32> whole(outputs);
    Part<kDim> part;
    ring.walk(first, last, [&](const T* k, const T* v, int tile) {
      add_tile(part, query, k, v, tile * kTileKeys, scale);
      if (ends_split(tile) || tile == last) whole.add(part);
    });
    whole.template store<T>(p, rows, first_row, count);
  }
}

}  // namespace

void decode_d2(const AttentionArgs& p, Stream stream) {
  if (p.sequences.num_tokens == 0) return;
  dim3 grid(p.sequences.num_seqs, p.num_kv_heads);
  with_tensor_types(p, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    constexpr int kBytes = Ring<T, kDim, 1, kStages>::kBytes;
    LAUNCH((decode_d2_kernel<T, kDim>), grid, 32, kBytes, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
