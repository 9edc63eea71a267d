// Tiles of rows that lie expert by expert: which expert's rows a block has. For the products with experts' matrices.
//
//     x   [ expert 1: 20 rows | expert 3: 5 rows ]      tiles of 16: rows 0 to 15, 16 to 19, 20 to 24
//
// The host does not know how many rows an expert has. It starts as many blocks as there can be tiles.

#pragma once

#include "dispatch.h"

namespace minillm::cuda {

struct ExpertTile {
  int expert, first, end;  // all 0: there is no such tile
};

// Finds the tile of this block, blockIdx.y. In each round the 32 lanes of a warp count the row tiles of 32 experts, one
// expert per lane. The lane that has this block's tile keeps it. At the end a sum over the warp gives it to all lanes.
template <int kRows>
__device__ __forceinline__ ExpertTile find_tile(const ExpertLinearArgs& p) {
  int tile = blockIdx.y, lane = threadIdx.x % 32, expert = 0, first = 0, end = 0;
  for (int from = 0; from < p.num_experts; from += 32) {
    int mine = min(from + lane, p.num_experts), start = p.starts[mine];
    int stop = mine < p.num_experts ? p.starts[mine + 1] : start;
    int tiles = (stop - start + kRows - 1) / kRows, up_to_me = tiles;
    for (int step = 1; step < 32; step *= 2) {
      int before = __shfl_up_sync(0xffffffff, up_to_me, step);
      if (lane >= step) up_to_me += before;
    }
    int within = tile - (up_to_me - tiles);
    if (within >= 0 && within < tiles) expert = mine, first = start + within * kRows, end = stop;
    tile -= __shfl_sync(0xffffffff, up_to_me, 31);
  }
  for (int step = 16; step > 0; step /= 2) {
    expert += __shfl_xor_sync(0xffffffff, expert, step);
    first += __shfl_xor_sync(0xffffffff, first, step);
    end += __shfl_xor_sync(0xffffffff, end, step);
  }
  return {expert, first, end};
}

// The product of the tile's rows with its expert's matrix. Rows end at the expert's last.
template <class T>
__device__ __forceinline__ LinearArgs own_matrix(const ExpertLinearArgs& p, const ExpertTile& tile) {
  LinearArgs own = p;
  int64_t above = static_cast<int64_t>(tile.expert) * p.pitch;  // rows of the matrices of lower experts
  own.weight = static_cast<const T*>(own.weight) + above * own.in;
  if (own.bias) own.bias = static_cast<const T*>(own.bias) + above;
  own.rows = tile.end;
  return own;
}

// The most experts that can have rows.
inline int most_used(const ExpertLinearArgs& p) { return p.rows < p.num_experts ? p.rows : p.num_experts; }

// The most tiles that there can be: those of an expert hold at most kRows - 1 rows more than it has.
template <int kRows>
int most_tiles(const ExpertLinearArgs& p) {
  return static_cast<int>((p.rows + int64_t{1} * most_used(p) * (kRows - 1)) / kRows);
}

}  // namespace minillm::cuda
