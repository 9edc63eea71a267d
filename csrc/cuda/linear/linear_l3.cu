// linear, rung 3: register tiles. A thread computes 8 x 8 outputs, so each number read from shared memory is used 8 times.
//
//     W^T tile [8 columns of W][128 outputs]        a block: 128 rows x 128 outputs, 8 columns of the inputs at a time
//                 xxxx........yyyy....
//     x^T tile    +----+      +----+                thread: rows 4 i .. 4 i + 3 and 64 further down (i = thread / 16),
//     [8][128] x  |4x4 |      |4x4 |                outputs 4 j .. 4 j + 3 and 64 further on (j = thread % 16)
//              .  +----+      +----+
//              y  |4x4 |      |4x4 |                four loads of 16 bytes for 64 multiply-adds; l2 has two loads
//                 +----+      +----+                for one
//
// Both tiles lie with k outermost: four neighbouring rows of x are then one load. Each output is one float32 sum over
// k = 0, 1, 2, ...: the bits of l1 and l2, for every number of rows (contract C2).
//
// Bytes: rows * out * in * (1/128 + 1/128) elements. FLOPs: 2 * rows * out * in. Limit: float32 units and shared memory
// alike. With few rows most of a tile is empty: the engine uses l2 there. Left out: tensor cores (l4).
// Predicted, H100: 582 us for 1 row (latency of instructions), 3.61 ms for 4096 rows (instructions).

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kTile = 128;   // rows and outputs of a block
constexpr int kDepth = 8;    // columns of the inputs in shared memory
constexpr int kThreads = 256;
constexpr int kFour = 4;     // neighbours that a thread reads in one load
constexpr int kHalf = kTile / 2;
constexpr int kLoads = kTile * kDepth / kThreads;  // elements of a tile for each thread

// A row of a tile is padded by four words: 32 threads store 4 rows of x, 8 columns each, into 32 banks.
constexpr int kPitch = kTile + kFour;

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
__device__ __forceinline__ void store_elements(float (&tile)[kDepth][kPitch], const T (&loaded)[kLoads]) {
  UNROLL
  for (int i = 0; i < kLoads; i++) {
    int at = i * kThreads + threadIdx.x;
    tile[at % kDepth][at / kDepth] = to_float(loaded[i]);
  }
}

// The eight numbers of a thread in one row of a tile.
__device__ __forceinline__ void read_eight(float (&to)[2 * kFour], const float* row, int first) {
  UNROLL
  for (int half = 0; half < 2; half++) {
    Vec<float, kFour> four = load_wide<Vec<float, kFour>>(row + half * kHalf + first);
    UNROLL
    for (int i = 0; i < kFour; i++) to[half * kFour + i] = four.v[i];
  }
}

// The i-th of a thread's rows or outputs.
__device__ __forceinline__ int place(int first, int i) { return i / kFour * kHalf + first + i % kFour; }

template <class T>
__global__ void __launch_bounds__(kThreads, 2) linear_l3_kernel(const __grid_constant__ LinearArgs p) {
  SHARED(float, x_tile, [kDepth][kPitch]);
  SHARED(float, w_tile, [kDepth][kPitch]);
  int first_row = blockIdx.y * kTile, first_col = blockIdx.x * kTile;
  int local_row = threadIdx.x / 16 * kFour, local_col = threadIdx.x % 16 * kFour;

  T x_next[kLoads], w_next[kLoads];
  auto load_next = [&](int column) {
    load_elements(x_next, static_cast<const T*>(p.x), first_row, p.rows, column, p.in);
    load_elements(w_next, static_cast<const T*>(p.weight), first_col, p.out, column, p.in);
  };
  load_next(0);
  float sums[2 * kFour][2 * kFour] = {};
  for (int column = 0; column < p.in; column += kDepth) {
    __syncthreads();  // the previous tiles have been read
    store_elements(x_tile, x_next);
    store_elements(w_tile, w_next);
    __syncthreads();
    load_next(column + kDepth);  // these loads run during the products below; past the end they give zeros
    int depth = min(kDepth, p.in - column);  // not the zeros behind the end: -0 + 0 would become +0
    UNROLL
    for (int k = 0; k < kDepth; k++) {
      if (k >= depth) break;
      float x[2 * kFour], w[2 * kFour];
      read_eight(x, x_tile[k], local_row);
      read_eight(w, w_tile[k], local_col);
      UNROLL
      for (int i = 0; i < 2 * kFour; i++)
        UNROLL
        for (int j = 0; j < 2 * kFour; j++) sums[i][j] = fmaf(x[i], w[j], sums[i][j]);
    }
  }

  UNROLL
  for (int i = 0; i < 2 * kFour; i++) {
    int row = first_row + place(local_row, i);
    if (row >= p.rows) return;
    UNROLL
    for (int j = 0; j < 2 * kFour; j++) {
      int col = first_col + place(local_col, j);
      if (col >= p.out) continue;
      float sum = sums[i][j];
      if (p.bias) sum += to_float(static_cast<const T*>(p.bias)[col]);
      static_cast<T*>(p.y)[static_cast<int64_t>(row) * p.out + col] = from_float<T>(sum);
    }
  }
}

}  // namespace

void linear_l3(const LinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    dim3 grid(ceil_div(p.out, kTile), ceil_div(p.rows, kTile));
    LAUNCH(linear_l3_kernel<T>, grid, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
