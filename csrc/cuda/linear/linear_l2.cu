// linear, rung 2: loads in flight. The tiles of l1, but the next ones are on their way while these are multiplied.
//
//     shared memory   | tiles n     |  multiplied now       x [rows, in]: 16 rows, 32 columns
//     registers       | tiles n + 1 |  on their way         W [out, in]: 16 outputs, 32 columns
//
// A thread loads its four numbers without waiting between them: their number is a constant, so the compiler issues all
// loads before the first number is used. Each output is one float32 sum over k = 0, 1, 2, ...: the bits of l1, for
// every number of rows (contract C2).
//
// linear_experts is the same for rows that lie expert by expert, each with a matrix of its own. A tile has rows of one
// expert, and an expert without rows has no tile:
//
//     x   [ expert 1: 20 rows | expert 3: 5 rows ]      tile 0: rows 0 to 15, tile 1: 16 to 19, tile 2: 20 to 24
//
// The host does not know how many rows an expert has. It starts as many tiles as there can be; those without rows end
// at once.
//
// Bytes: rows * out * in * (1/16 + 1/16) elements. FLOPs: 2 * rows * out * in. Limit: shared memory, two loads per
// multiply-add. Left out: register tiles (l3), tensor cores (l4), split-K (which would change the order of the sum).
// Predicted, H100: 112 us for 1 row (latency of instructions), 19.8 ms for 4096 rows (shared memory).

#include "dispatch.h"
#include "row_tiles.h"

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

// Two blocks less than `linear` has: the addresses of the expert's matrix take registers.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks - 2)
    linear_experts_kernel(const __grid_constant__ ExpertLinearArgs p) {
  ExpertTile tile = find_tile<kTile>(p);
  if (tile.end == 0) return;  // the whole block returns: no thread waits at a barrier
  multiply_tile<T>(own_matrix<T>(p, tile), tile.first);
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
    dim3 grid(ceil_div(p.out, kTile), most_tiles<kTile>(p));
    LAUNCH(linear_experts_kernel<T>, grid, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
