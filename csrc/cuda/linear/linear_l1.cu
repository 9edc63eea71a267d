// linear, rung 1: y = x W^T + bias, tiled in shared memory. The simplest matrix product that reuses its inputs.
//
//     x [rows, in]    W [out, in]          a block computes 16 x 16 outputs; 32 columns of both inputs
//     +--------+      +--------+           are in shared memory at a time, so each number read from
//     |  ====  | 16   |  ====  | 16        global memory is used 16 times
//     +--------+      +--------+
//        32              32                thread (row, col): one output, one accumulator
//
// Each output is one float32 sum over k = 0, 1, 2, ... for every number of rows: a token's result does not
// depend on the other rows of the batch (contract C2). l2 and l3 sum in the same order and have the same bits.
//
// Bytes: rows * out * in * (1/16 + 1/16) elements. FLOPs: 2 * rows * out * in. Limit: the latency of global memory. A
// tile is multiplied only when it has arrived, and the next one is asked for only when it has been multiplied. Left
// out: loads in flight (l2), register tiles (l3), tensor cores (l4).
// Predicted, H100: 323 us for 1 row (bytes in flight), 26.1 ms for 4096 rows (shared memory).

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kTile = 16;   // outputs per side
constexpr int kDepth = 32;  // columns of the inputs in shared memory

// Each row is padded by one word. Without it all rows would begin in the same bank, and a warp that reads one
// column of 16 rows would need 16 wavefronts.
constexpr int kPitch = kDepth + 1;

constexpr int kThreads = kTile * kTile;

// Rows from `first` and columns from `column` of a [rows, columns] matrix; elements outside the matrix are zero.
template <class T>
__device__ __forceinline__ void load_tile(float (&tile)[kTile][kPitch], const T* matrix, int first, int rows, int column,
                                          int columns) {
  for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
    int row = i / kDepth, k = i % kDepth;
    bool inside = first + row < rows && column + k < columns;
    tile[row][k] = inside ? to_float(matrix[static_cast<int64_t>(first + row) * columns + column + k]) : 0.0f;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) linear_l1_kernel(const __grid_constant__ LinearArgs p) {
  SHARED(float, x_tile, [kTile][kPitch]);
  SHARED(float, w_tile, [kTile][kPitch]);
  int local_row = threadIdx.x / kTile, local_col = threadIdx.x % kTile;
  int row = blockIdx.y * kTile + local_row, col = blockIdx.x * kTile + local_col;
  bool inside = row < p.rows && col < p.out;
  float sum = 0;
  for (int column = 0; column < p.in; column += kDepth) {
    __syncthreads();  // the previous tiles have been read
    load_tile(x_tile, static_cast<const T*>(p.x), blockIdx.y * kTile, p.rows, column, p.in);
    load_tile(w_tile, static_cast<const T*>(p.weight), blockIdx.x * kTile, p.out, column, p.in);
    __syncthreads();
    int depth = min(kDepth, p.in - column);
    if (inside)
      for (int k = 0; k < depth; k++) sum = fmaf(x_tile[local_row][k], w_tile[local_col][k], sum);
  }
  if (!inside) return;
  if (p.bias) sum += to_float(static_cast<const T*>(p.bias)[col]);
  static_cast<T*>(p.y)[static_cast<int64_t>(row) * p.out + col] = from_float<T>(sum);
}

}  // namespace

void linear_l1(const LinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    dim3 grid(ceil_div(p.out, kTile), ceil_div(p.rows, kTile));
    LAUNCH(linear_l1_kernel<T>, grid, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
