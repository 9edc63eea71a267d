// Which rows a block of attention_v3 and attention_v4 has: kRows packed rows (tensor_tile.h) of one sequence.
//
//     blocks   0                1                2          ...
//     rows     [last of the last sequence] [those before] ..      a prompt's last rows see the most keys, so the
//                                                                 tiles with the most work start first

#pragma once

#include "dispatch.h"

namespace minillm::cuda {

struct RowTile {
  int sequence, first_row;  // sequence -1: there are fewer tiles
};

// The tile of this block, counted through the sequences from the last.
template <int kRows>
__device__ __forceinline__ RowTile find_tile(const Sequences& s, int group) {
  int tile = blockIdx.x;
  for (int i = s.num_seqs - 1; i >= 0; i--) {
    int tiles = ((s.query_start[i + 1] - s.query_start[i]) * group + kRows - 1) / kRows;
    if (tile < tiles) return {i, (tiles - 1 - tile) * kRows};
    tile -= tiles;
  }
  return {-1, 0};
}

// How the rows divide among sequences is known on the GPU only: enough tiles for any division.
template <int kRows>
dim3 tile_grid(const AttentionArgs& p) {
  int64_t rows = int64_t{1} * p.sequences.num_tokens * (p.num_heads / p.num_kv_heads);
  return dim3(static_cast<unsigned>(rows / kRows + p.sequences.num_seqs), p.num_kv_heads);
}

}  // namespace minillm::cuda
