// linear: y = x W^T + bias, tiled in shared memory: the simplest matrix product that reuses its inputs.
//
//     x [rows, in]    W [out, in]          a block computes 16 x 16 outputs; 32 columns of both inputs
//     +--------+      +--------+           are in shared memory at a time, so each number read from
//     |  ====  | 16   |  ====  | 16        global memory is used 16 times
//     +--------+      +--------+
//        32              32                thread (row, col): one output, one accumulator
//
// Each output is one float32 sum over k = 0, 1, 2, ... for every number of rows: a token's result does not
// depend on the other rows of the batch (contract C2).
//
// linear_experts is the same for rows that lie expert by expert, each with a matrix of its own. A tile has rows of one
// expert, and an expert without rows has no tile:
//
//     x   [ expert 1: 20 rows | expert 3: 5 rows ]      tile 0: rows 0 to 15, tile 1: 16 to 19, tile 2: 20 to 24
//
// The host does not know how many rows an expert has. It starts as many tiles as there can be; those without rows end
// at once. Bytes: rows * out * in * (1/16 + 1/16) elements.
// FLOPs: 2 * rows * out * in. The next tiles are loaded into registers while the current ones are used. Limit:
// shared memory, two loads per multiply-add. Left out: register tiles, tensor cores, split-K (which would
// change the order of the sum).

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kTile = 16;   // outputs per side
constexpr int kDepth = 32;  // columns of the inputs in shared memory

// Each row is padded by one word. Without it all rows would begin in the same bank, and a warp that reads one
// column of 16 rows would need 16 wavefronts.
constexpr int kPitch = kDepth + 1;

constexpr int kThreads = kTile * kTile;
constexpr int kLoads = kTile * kDepth / kThreads;  // elements of a tile for each thread

// Loads this thread's share of a tile of a [rows, columns] matrix. The tile begins at (first, column); elements
// outside the matrix are zero. The number of loads is a constant, so all are issued before one is waited for.
template <class T>
__device__ __forceinline__ void load_elements(T (&loaded)[kLoads], const T* matrix, int first, int rows, int column,
                                              int columns) {
  UNROLL
  for (int i = 0; i < kLoads; i++) {
    int at = i * kThreads + threadIdx.x, row = at / kDepth, k = at % kDepth;
    bool inside = first + row < rows && column + k < columns;
    loaded[i] = inside ? matrix[static_cast<int64_t>(first + row) * columns + column + k] : from_float<T>(0.0f);
  }
}

template <class T>
__device__ __forceinline__ void store_elements(float (&tile)[kTile][kPitch], const T (&loaded)[kLoads]) {
  UNROLL
  for (int i = 0; i < kLoads; i++) {
    int at = i * kThreads + threadIdx.x;
    tile[at / kDepth][at % kDepth] = to_float(loaded[i]);
  }
}

// One block less than a multiprocessor can hold leaves each thread 36 registers. Without this ptxas spills on sm_80.
constexpr int kBlocks = kResidentThreads / kThreads - 1;

// Outputs of the rows from `first_row` to p.rows, at most kTile, and of kTile columns.
template <class T>
__device__ __forceinline__ void multiply_tile(const LinearArgs& p, int first_row) {
  SHARED(float, x_tile, [kTile][kPitch]);
  SHARED(float, w_tile, [kTile][kPitch]);
  int local_row = threadIdx.x / kTile, local_col = threadIdx.x % kTile;
  int row = first_row + local_row, col = blockIdx.x * kTile + local_col;
  bool inside = row < p.rows && col < p.out;

  T x_next[kLoads], w_next[kLoads];
  auto load_next = [&](int column) {
    load_elements(x_next, static_cast<const T*>(p.x), first_row, p.rows, column, p.in);
    load_elements(w_next, static_cast<const T*>(p.weight), blockIdx.x * kTile, p.out, column, p.in);
  };
  load_next(0);
  float sum = 0;
  for (int column = 0; column < p.in; column += kDepth) {
    __syncthreads();  // the previous tiles have been read
    store_elements(x_tile, x_next);
    store_elements(w_tile, w_next);
    __syncthreads();
    load_next(column + kDepth);  // these loads run during the products below; past the end they give zeros
    int depth = min(kDepth, p.in - column);
    if (inside)
      for (int k = 0; k < depth; k++) sum = fmaf(x_tile[local_row][k], w_tile[local_col][k], sum);
  }
  if (!inside) return;
  if (p.bias) sum += to_float(static_cast<const T*>(p.bias)[col]);
  static_cast<T*>(p.y)[static_cast<int64_t>(row) * p.out + col] = from_float<T>(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_l2_kernel(const __grid_constant__ LinearArgs p) {
  multiply_tile<T>(p, blockIdx.y * kTile);
}

struct RowTile {
  int expert, first, end;  // all 0: there is no such tile
};

// Finds the tile of this block. In each round the 32 lanes of a warp count the row tiles of 32 experts, one expert per
// lane. The lane that has this block's tile keeps it. At the end a sum over the warp gives it to all lanes.
__device__ __forceinline__ RowTile find_tile(const ExpertLinearArgs& p) {
  int tile = blockIdx.y, lane = threadIdx.x % 32, expert = 0, first = 0, end = 0;
  for (int from = 0; from < p.num_experts; from += 32) {
    int mine = min(from + lane, p.num_experts), start = p.starts[mine];
    int stop = mine < p.num_experts ? p.starts[mine + 1] : start;
    int tiles = (stop - start + kTile - 1) / kTile, up_to_me = tiles;
    for (int step = 1; step < 32; step *= 2) {
      int before = __shfl_up_sync(0xffffffff, up_to_me, step);
      if (lane >= step) up_to_me += before;
    }
    int within = tile - (up_to_me - tiles);
    if (within >= 0 && within < tiles) expert = mine, first = start + within * kTile, end = stop;
    tile -= __shfl_sync(0xffffffff, up_to_me, 31);
  }
  for (int step = 16; step > 0; step /= 2) {
    expert += __shfl_xor_sync(0xffffffff, expert, step);
    first += __shfl_xor_sync(0xffffffff, first, step);
    end += __shfl_xor_sync(0xffffffff, end, step);
  }
  return {expert, first, end};
}

// Two blocks less than `linear` has: the addresses of the expert's matrix take registers.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks - 2)
    linear_experts_kernel(const __grid_constant__ ExpertLinearArgs p) {
  RowTile tile = find_tile(p);
  if (tile.end == 0) return;  // the whole block returns: no thread waits at a barrier
  LinearArgs own = p;
  int64_t above = static_cast<int64_t>(tile.expert) * p.pitch;  // rows of the matrices of lower experts
  own.weight = static_cast<const T*>(own.weight) + above * own.in;
  if (own.bias) own.bias = static_cast<const T*>(own.bias) + above;
  own.rows = tile.end;
  multiply_tile<T>(own, tile.first);
}

}  // namespace

void linear_l2(const LinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    dim3 grid(ceil_div(p.out, kTile), ceil_div(p.rows, kTile));
    LAUNCH(linear_l2_kernel<T>, grid, kThreads, 0, stream_of(stream), p);
  });
}

void linear_experts(const ExpertLinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    // At most `used` experts have rows, and the tiles of one hold at most 15 rows more than it has.
    int used = p.rows < p.num_experts ? p.rows : p.num_experts;
    dim3 grid(ceil_div(p.out, kTile), (p.rows + used * (kTile - 1)) / kTile);
    LAUNCH(linear_experts_kernel<T>, grid, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
