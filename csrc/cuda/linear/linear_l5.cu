// linear, rung 5: ldmatrix, swizzled tiles, and shapes of tiles by the number of tokens. y = x W^T + bias for 16-bit
// numbers on tensor cores, one accumulator per output at every batch size.
//
//     W [out, in]: the 16 rows of an mma        x [tokens, in]: its 8 columns
//
//     stage s (64 columns of both)   | s | s+1 | s+2 |  ...  |      a ring in shared memory: while one stage is
//     W  kOut rows    [ 128 bytes ]  |===|-----|-----|  ...  |      multiplied, the others are on their way
//     x  kTokens rows [ 128 bytes ]  |===|-----|-----|  ...  |      (cp.async)
//
// A warp takes 16 x 16 of W and 16 x 8 of x out of a stage with ldmatrix and adds their product to 16 x 8 sums in
// its registers. An output's products are added for k = 0..15, 16..31, ... in one chain, for every
// shape of tile: a token's result does not depend on the rest of the batch (contract C2). So the choice among
// the shapes below changes only the speed:
//
//     16 x 8, 16 x 16, 32 x 32    few tokens: W is read once, and bandwidth is all. Small tiles make a block for
//                                 every multiprocessor, and long rings keep 30 KB on the way in each
//     64 x 64, 128 x 128          many tokens: each number in shared memory is used 32 (64) times
//
// Bytes: W ceil(rows / kTokens) times, x ceil(out / kOut) times. FLOPs: 2 * rows * out * in. Limit: memory for few
// tokens; for many what the blocks read from L2 again, and the tensor cores, of which mma.sync reaches about 60 % on
// sm_90 (wgmma all of it).
//
// linear_l5_experts is the same for rows that lie expert by expert (row_tiles.h), each with its expert's matrix.
//
// Left out: wgmma and TMA, split-K (which would change the order of the sum).
// Predicted, H100: 14.1 us for 1 row (DRAM), 348 us for 4096 rows (L2).

#include "dispatch.h"
#include "row_tiles.h"

namespace minillm::cuda {
namespace {

constexpr int kDepth = 64;               // columns in a stage: 128 bytes a row, each bank once
constexpr int kWide = 8;                 // numbers in 16 bytes: a chunk, the unit of copies and of ldmatrix
constexpr int kChunks = kDepth / kWide;  // in a row of a stage
constexpr int kSteps = kDepth / 16;      // mma after mma in a stage

// Warps side by side, tiles of 16 x 8 in each, and stages; kBlocks of them fit a multiprocessor.
template <int kWarpsOut_, int kWarpsTokens_, int kOutTiles_, int kTokenTiles_, int kStages_, int kBlocks_>
struct Shape {
  static constexpr int kWarpsOut = kWarpsOut_, kWarpsTokens = kWarpsTokens_;
  static constexpr int kOutTiles = kOutTiles_, kTokenTiles = kTokenTiles_;
  static constexpr int kStages = kStages_, kBlocks = kBlocks_;
  static constexpr int kThreads = 32 * kWarpsOut * kWarpsTokens;
  static constexpr int kOut = 16 * kOutTiles * kWarpsOut, kTokens = 8 * kTokenTiles * kWarpsTokens;
  static constexpr int kStageSize = (kOut + kTokens) * kDepth;  // numbers
};

// Where chunk `chunk` of a row lies. The eight chunks of a row change places, differently in eight neighbouring
// rows: the same chunk of eight rows, which is what ldmatrix reads at once, then lies in all 32 banks.
constexpr int kSwizzled = 8;  // rows; 1 would be none

__device__ __forceinline__ int place(int row, int chunk) { return row * kDepth + (chunk ^ row % kSwizzled) * kWide; }

// place(row + rows, chunk + chunks) from at = place(row, chunk), where neither addition carries into a bit that is
// set: known numbers then cost one exclusive or, and what is left of them is part of the instruction.
__device__ __forceinline__ int moved(int at, int rows, int chunks) {
  return (at ^ (chunks ^ rows % kSwizzled) * kWide) + rows * kDepth;
}

// What a thread copies of a [rows, columns] matrix into each stage: a chunk of one row, and of others further down.
template <class T, int kRows, int kThreads>
struct Source {
  static constexpr int kCopies = kRows * kChunks / kThreads, kRowsApart = kThreads / kChunks;
  const T* from;
  int apart, rows_left, columns_left, at;  // two of its rows; from its first chunk on; that one's place in the stage

  __device__ __forceinline__ Source(const void* matrix, int first, int rows, int columns) {
    int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    from = static_cast<const T*>(matrix) + static_cast<int64_t>(first + row) * columns + chunk * kWide;
    apart = kRowsApart * columns;
    rows_left = rows - first - row;
    columns_left = columns - chunk * kWide;
    at = place(row, chunk);
  }

  // The part that is copied beside step `step`; zeros where the matrix has ended.
  __device__ __forceinline__ void copy(T* tile, int column, int step) const {
    UNROLL
    for (int i = 0; i < kCopies; i++) {
      if (i * kSteps / kCopies != step) continue;
      copy_async_or_zero(tile + moved(at, i * kRowsApart, 0), from + (i * apart + column),
                         i * kRowsApart < rows_left && column < columns_left);
    }
  }
};

// What a warp multiplies in one step: 16 columns of its rows of W and x.
template <class T, class S>
struct Fragments {
  Vec<T, 8> w[S::kOutTiles];
  Vec<T, 4> x[S::kTokenTiles];
};

// Where this lane's rows begin in every stage; ldmatrix wants a place from each lane.
struct Places {
  int w, x;
};

template <class S>
__device__ __forceinline__ Places own_places() {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int w_row = warp / S::kWarpsTokens * S::kOutTiles * 16 + lane % 16;
  int x_row = S::kOut + warp % S::kWarpsTokens * S::kTokenTiles * 8 + lane % 8;
  if (S::kTokenTiles > 1) x_row += lane / 16 * 8;  // two tiles at a time: lanes 16.. point into the second
  return {place(w_row, lane / 16), place(x_row, lane / 8 % 2)};
}

template <class T, class S>
__device__ __forceinline__ void load_fragments(Fragments<T, S>& to, const T* stage, Places at, int step) {
  UNROLL
  for (int i = 0; i < S::kOutTiles; i++) load_matrices<4>(to.w[i].v, stage + moved(at.w, 16 * i, 2 * step));
  if constexpr (S::kTokenTiles == 1) {
    load_matrices<2>(to.x[0].v, stage + moved(at.x, 0, 2 * step));
  } else {
    UNROLL
    for (int i = 0; i < S::kTokenTiles; i += 2) {
      Vec<T, 8> both;
      load_matrices<4>(both.v, stage + moved(at.x, 8 * i, 2 * step));
      UNROLL
      for (int j = 0; j < 8; j++) to.x[i + j / 4].v[j % 4] = both.v[j];
    }
  }
}

// A lane's sums to y, of type Out: `out` and `token` are its first ones.
template <class T, class Out, class S>
__device__ __forceinline__ void store(const LinearArgs& p, const float (&sums)[S::kOutTiles][S::kTokenTiles][4], int out,
                                      int token) {
  UNROLL
  for (int i = 0; i < 2 * S::kOutTiles; i++) {
    int row = out + 8 * i;  // of W
    if (row >= p.out) return;
    float bias = p.bias ? to_float(static_cast<const T*>(p.bias)[row]) : 0.0f;
    Out* to = static_cast<Out*>(p.y) + static_cast<int64_t>(token) * p.out + row;
    UNROLL
    for (int j = 0; j < 2 * S::kTokenTiles; j++) {
      int next = j / 2 * 8 + j % 2;
      if (token + next < p.rows)
        to[static_cast<int64_t>(next) * p.out] = from_float<Out>(sums[i / 2][j / 2][i % 2 * 2 + j % 2] + bias);
    }
  }
}

// Outputs of the tokens from `first_token` on, S::kTokens at most, below p.rows.
template <class T, class S>
__device__ __forceinline__ void multiply(const LinearArgs& p, int first_token) {
  DYNAMIC_SHARED(T, ring);
  int first_out = blockIdx.x * S::kOut;
  int stages = (p.in + kDepth - 1) / kDepth;
  Source<T, S::kOut, S::kThreads> w(p.weight, first_out, p.out, p.in);
  Source<T, S::kTokens, S::kThreads> x(p.x, first_token, p.rows, p.in);
  auto copy_part = [&](int stage, int slot, int step) {
    if (stage >= stages) return;
    T* to = ring + slot * S::kStageSize;
    w.copy(to, stage * kDepth, step);
    x.copy(to + S::kOut * kDepth, stage * kDepth, step);
  };
  for (int stage = 0; stage < S::kStages - 1; stage++) {
    UNROLL
    for (int step = 0; step < kSteps; step++) copy_part(stage, stage, step);
    commit_copies();  // also where nothing was copied: waiting counts groups
  }
  wait_copies<S::kStages - 2>();
  __syncthreads();  // everybody's copies of the first stage have arrived

  Places at = own_places<S>();
  Fragments<T, S> fragments[2];  // of this step and of the next one
  load_fragments(fragments[0], ring, at, 0);
  float sums[S::kOutTiles][S::kTokenTiles][4] = {};
  int slot = 0, free_slot = S::kStages - 1;
  for (int stage = 0; stage < stages; stage++) {
    int next_slot = slot + 1 == S::kStages ? 0 : slot + 1;
    UNROLL
    for (int step = 0; step < kSteps; step++) {
      copy_part(stage + S::kStages - 1, free_slot, step);
      if (step + 1 < kSteps) {
        load_fragments(fragments[(step + 1) % 2], ring + slot * S::kStageSize, at, step + 1);
      } else {
        commit_copies();
        wait_copies<S::kStages - 2>();
        __syncthreads();  // the next stage has arrived, and this one has been read: its slot is free
        if (stage + 1 < stages) load_fragments(fragments[0], ring + next_slot * S::kStageSize, at, 0);
      }
      UNROLL
      for (int i = 0; i < S::kOutTiles; i++)
        UNROLL
        for (int j = 0; j < S::kTokenTiles; j++)
          mma_m16n8k16(sums[i][j], fragments[step % 2].w[i].v, fragments[step % 2].x[j].v);
    }
    free_slot = slot;
    slot = next_slot;
  }

  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int out = first_out + warp / S::kWarpsTokens * S::kOutTiles * 16 + lane / 4;
  int token = first_token + warp % S::kWarpsTokens * S::kTokenTiles * 8 + lane % 4 * 2;
  if (p.float_out)
    store<T, float, S>(p, sums, out, token);
  else
    store<T, T, S>(p, sums, out, token);
}

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) linear_l5_kernel(const __grid_constant__ LinearArgs p) {
  multiply<T, S>(p, blockIdx.y * S::kTokens);
}

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    linear_l5_experts_kernel(const __grid_constant__ ExpertLinearArgs p) {
  ExpertTile tile = find_tile<S::kTokens>(p);
  if (tile.end == 0) return;  // the whole block returns: no thread waits at a barrier
  multiply<T, S>(own_matrix<T>(p, tile), tile.first);
}

template <class T, class S>
void launch(const LinearArgs& p, Stream stream) {
  dim3 grid(ceil_div(p.out, S::kOut), ceil_div(p.rows, S::kTokens));
  constexpr int kBytes = S::kStages * S::kStageSize * static_cast<int>(sizeof(T));
  LAUNCH((linear_l5_kernel<T, S>), grid, S::kThreads, kBytes, stream_of(stream), p);
}

template <class T, class S>
void launch_experts(const ExpertLinearArgs& p, Stream stream) {
  dim3 grid(ceil_div(p.out, S::kOut), most_tiles<S::kTokens>(p));
  constexpr int kBytes = S::kStages * S::kStageSize * static_cast<int>(sizeof(T));
  LAUNCH((linear_l5_experts_kernel<T, S>), grid, S::kThreads, kBytes, stream_of(stream), p);
}

using Tile16x8 = Shape<1, 1, 1, 1, 16, 4>;
using Tile16x16 = Shape<1, 1, 1, 2, 16, 3>;
using Tile32x32 = Shape<2, 1, 1, 4, 12, 2>;
using Tile64x64 = Shape<2, 2, 2, 4, 4, 3>;
using Tile128x128 = Shape<2, 2, 4, 8, 3, 2>;

// The largest tiles do most with what they read, if there are enough of them to keep the chip busy.
constexpr int kEnoughBlocks = 96;

template <class T>
void launch_shape(const LinearArgs& p, Stream stream) {
  if (p.rows <= 8) return launch<T, Tile16x8>(p, stream);
  if (p.rows <= 16) return launch<T, Tile16x16>(p, stream);
  if (p.rows <= 32) return launch<T, Tile32x32>(p, stream);
  int64_t blocks = int64_t{1} * ceil_div(p.rows, Tile128x128::kTokens) * ceil_div(p.out, Tile128x128::kOut);
  if (blocks < kEnoughBlocks) return launch<T, Tile64x64>(p, stream);
  launch<T, Tile128x128>(p, stream);
}

// How many rows each expert has, the host does not know: tiles for the average.
template <class T>
void launch_expert_shape(const ExpertLinearArgs& p, Stream stream) {
  int each = p.rows / most_used(p);
  if (each <= 8) return launch_experts<T, Tile16x8>(p, stream);
  if (each <= 32) return launch_experts<T, Tile32x32>(p, stream);
  launch_experts<T, Tile64x64>(p, stream);
}

}  // namespace

void linear_l5(const LinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  if (p.dtype == DType::bf16) launch_shape<bfloat16>(p, stream);
  if (p.dtype == DType::f16) launch_shape<float16>(p, stream);
}

void linear_l5_experts(const ExpertLinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  if (p.dtype == DType::bf16) launch_expert_shape<bfloat16>(p, stream);
  if (p.dtype == DType::f16) launch_expert_shape<float16>(p, stream);
}

}  // namespace minillm::cuda
