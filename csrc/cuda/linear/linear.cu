// linear: y = x W^T + bias, tiled in shared memory: the simplest matrix product that reuses its inputs.
//
//     x [rows, in]    W [out, in]          a block computes 16 x 16 outputs; 32 columns of both inputs
//     +--------+      +--------+           are in shared memory at a time, so each number read from
//     |  ====  | 16   |  ====  | 16        global memory is used 16 times
//     +--------+      +--------+
//        32              32                thread (row, col): one output, one accumulator
//
// Each output is one float32 sum over k = 0, 1, 2, ... for every number of rows: a token's result does not
// depend on the other rows of the batch (contract C2). Bytes: rows * out * in * (1/16 + 1/16) elements.
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

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_kernel(const __grid_constant__ LinearArgs p) {
  SHARED(float, x_tile, [kTile][kPitch]);
  SHARED(float, w_tile, [kTile][kPitch]);
  int local_row = threadIdx.x / kTile, local_col = threadIdx.x % kTile;
  int row = blockIdx.y * kTile + local_row, col = blockIdx.x * kTile + local_col;
  bool inside = row < p.rows && col < p.out;

  T x_next[kLoads], w_next[kLoads];
  auto load_next = [&](int column) {
    load_elements(x_next, static_cast<const T*>(p.x), blockIdx.y * kTile, p.rows, column, p.in);
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

}  // namespace

void linear(const LinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    dim3 grid(ceil_div(p.out, kTile), ceil_div(p.rows, kTile));
    LAUNCH(linear_kernel<T>, grid, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
