// Attention, rung 4: Hopper. One warp copies, eight multiply, and neither waits for the other except at mbarriers.
//
//     warp 0          wait empty[0]  copy tile n      wait empty[1]  copy tile n + 1   ...
//     (few registers)        |                               |
//                            v full[0]                       v full[1]
//     warpgroup 1, 2         wait full[0]  multiply tile n   wait full[1]  multiply ...
//     (64 rows each)                       arrive empty[0]                 arrive empty[1]
//
// Rows, tiles, splits and sums are those of attention_v3, so a row has the same bits, as long as the chip's wgmma
// sums as its mma does (simt/tensor_core.cpp). What is new is how the data move: the tensor cores read K and V from
// shared memory themselves, so no thread loads fragments, and copies cost the multiplying threads nothing.
//
// Bytes and FLOPs: as attention_v3, besides the keys of a page that lie past a tile's end. Limit: each warpgroup waits
// for its own multiplications. Left out: the softmax of one tile under the multiplications of another, ping-pong
// between warpgroups, tiles of 128 keys. No chip has run this kernel yet.

#include "hopper_tile.h"
#include "query_tiles.h"
#include "splits.h"

namespace minillm::cuda {
namespace {

constexpr int kWarpgroup = 128, kConsumers = 2 * kWarpgroup, kThreads = kWarpgroup + kConsumers;
constexpr int kGroupRows = 64, kRows = 2 * kGroupRows;
constexpr int kStages = 3;

// The ring of tiles: stages in shared memory, and for each two mbarriers: the stage is full, the stage is empty.
template <class T, int kDim>
struct Stages {
  static constexpr int kStageSize = 2 * Producer<T, kDim>::kTileSize;  // numbers
  static constexpr int kBytes = kStages * kStageSize * static_cast<int>(sizeof(T));
  T* memory;
  Mbarrier *full, *empty;

  // `use(stage's memory, stage, parity, tile)` for the tiles first..last; the parity of the stage's phase.
  template <class Use>
  __device__ __forceinline__ void walk(int first, int last, Use use) const {
    int stage = 0, parity = 0;
    for (int tile = first; tile <= last; tile++) {
      use(memory + stage * kStageSize, stage, parity, tile);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  }
};

template <class T, int kDim>
constexpr int kSharedBytes = kPatternBytes + Stages<T, kDim>::kBytes + Whole<kDim, kConsumers>::kBytes;

template <class T, int kDim>
__device__ __forceinline__ void multiply(const AttentionArgs& p, const PackedRows& rows, const RowTile& tile,
                                         const Stages<T, kDim>& stages, int first_tile, int last_tile) {
  int count = min(rows.count(), tile.first_row + kRows), thread = threadIdx.x - kWarpgroup;
  int first_row = tile.first_row + thread / 32 * kWarpRows;  // of the warp
  int group_end = tile.first_row + (thread / kWarpgroup + 1) * kGroupRows;
  int group_last = rows.keys(min(group_end, count) - 1).last;
  Query<T, kDim> query(p, rows, first_row, count);
  float scale = log2_scale(p);
  float* behind = reinterpret_cast<float*>(stages.memory + kStages * stages.kStageSize);
  Whole<kDim, kConsumers, kWarpgroup> whole(behind);
  Part<kDim> part;
  stages.walk(first_tile, last_tile, [&](const T* k, int stage, int parity, int key_tile) {
    mbarrier_wait(stages.full[stage], parity);
    const T* v = k + Producer<T, kDim>::kTileSize;
    if (key_tile * kTileKeys <= group_last) add_hopper_tile(part, query, k, v, key_tile * kTileKeys, scale);
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(stages.empty[stage]);
    if (ends_split(key_tile) || key_tile == last_tile) whole.add(part);
  });
  whole.template store<T>(p, rows, first_row, count);
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) attention_v4_kernel(const __grid_constant__ HopperArgs args) {
  DYNAMIC_SHARED(char, memory);
  SHARED(Mbarrier, full, [kStages]);
  SHARED(Mbarrier, empty, [kStages]);
  const AttentionArgs& p = args.attention;
  RowTile tile = find_tile<kRows>(p.sequences, p.num_heads / p.num_kv_heads);
  if (tile.sequence < 0) return;  // the whole block: nobody waits below
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      mbarrier_init(full[i], 1);
      mbarrier_init(empty[i], kConsumers / 32);
    }
    fence_mbarrier_init();
  }
  __syncthreads();

  PackedRows rows(p, tile.sequence, blockIdx.y);
  int count = min(rows.count(), tile.first_row + kRows);
  int first_tile = rows.keys(tile.first_row).first / kTileKeys, last_tile = rows.keys(count - 1).last / kTileKeys;
  int to_pattern = (kPatternBytes - shared_address(memory) % kPatternBytes) % kPatternBytes;
  Stages<T, kDim> stages = {reinterpret_cast<T*>(memory + to_pattern), full, empty};
  if (threadIdx.x < kWarpgroup) {
    lower_registers<40>();
    if (threadIdx.x >= 32) return;
    Producer<T, kDim> producer(args, rows);
    stages.walk(first_tile, last_tile, [&](T* k, int stage, int parity, int key_tile) {
      mbarrier_wait(empty[stage], parity ^ 1);
      producer.bring(key_tile, k, full[stage]);
    });
  } else {
    raise_registers<232>();
    multiply<T, kDim>(p, rows, tile, stages, first_tile, last_tile);
  }
}

// [slots, num_kv_heads, head_dim]. The number of slots is not known here and not needed: the engine checks indexes.
TensorMap map_of(const AttentionArgs& p, const void* cache, int box_rows) {
  uint64_t row = 2ull * p.head_dim, heads = p.num_kv_heads;
  uint32_t rows = box_rows;
  return make_tensor_map({cache, 2, 3, {static_cast<uint64_t>(p.head_dim), heads, 1ull << 31, 1}, {2, row, row * heads, 0},
                          {kBlockColumns, 1, rows, 1}, Swizzle::bytes128});
}

}  // namespace

void attention_v4(const AttentionArgs& p, Stream stream) {
  if (p.sequences.num_tokens == 0) return;
  HopperArgs args = {{}, {}, 0, p};
  if (kTileKeys % p.block_size == 0 || p.block_size % kTileKeys == 0) {
    args.box_rows = p.block_size < kTileKeys ? p.block_size : kTileKeys;
    args.k_map = map_of(p, p.k_cache, args.box_rows);
    args.v_map = map_of(p, p.v_cache, args.box_rows);
  }
  with_tensor_types(p, [&](auto zero, auto dim) {
    using T = decltype(zero);
    constexpr int kDim = decltype(dim)::value;
    constexpr int kBytes = kSharedBytes<T, kDim>;
    LAUNCH((attention_v4_kernel<T, kDim>), tile_grid<kRows>(p), kThreads, kBytes, stream_of(stream), args);
  });
}

}  // namespace minillm::cuda
