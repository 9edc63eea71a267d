// linear, rung 4: tensor cores. y = x W^T + bias for 16-bit numbers, in the order of sums that l5 has.
//
//     W [out, in]: the 16 rows of an mma       x [tokens, in]: its 8 columns
//
//     stage s (64 columns of both)   | s | s+1 |      in shared memory: while one stage is multiplied, the next one is
//     W  64 rows   [ 128 bytes | pad ]                on its way (cp.async, no registers)
//     x  64 rows   [ 128 bytes | pad ]
//
//     4 warps: each 32 outputs x 32 tokens, 2 x 4 products of 16 x 8
//
// A lane loads the pairs of numbers that mma wants of it one by one, 4 bytes each. A row is padded by 16 bytes: the
// eight rows that a warp reads at once then begin 4 banks apart, and lie in all 32. One accumulator per output, over
// k = 0..15, 16..31, ...: a token's result does not depend on the rest of the batch (contract C2).
//
// Bytes: W ceil(rows / 64) times, x ceil(out / 64) times. FLOPs: 2 * rows * out * in. Limit: shared memory; a warp reads
// 64 numbers in each instruction, and 16 such loads feed 8 products. Left out: ldmatrix, which reads four times as much,
// swizzled rows without padding, and tiles by the number of tokens (l5).
// Predicted, H100: 33.0 us for 1 row (bytes in flight), 688 us for 4096 rows (L2).

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kTile = 64;                // outputs and tokens of a block
constexpr int kDepth = 64;               // columns in a stage
constexpr int kWide = 8;                 // numbers in 16 bytes: what cp.async copies at once
constexpr int kPitch = kDepth + kWide;
constexpr int kStages = 2;
constexpr int kThreads = 128;
constexpr int kOutTiles = 2, kTokenTiles = 4;  // products of a warp

template <class T>
using Stage = T[2][kTile][kPitch];  // of W, of x

// Copies rows from `first` and columns from `column` of a [rows, columns] matrix; zeros outside of it.
template <class T>
__device__ __forceinline__ void copy_tile(T (&tile)[kTile][kPitch], const void* matrix, int first, int rows, int column,
                                          int columns) {
  UNROLL
  for (int i = 0; i < kTile * kDepth / kWide / kThreads; i++) {
    int at = i * kThreads + threadIdx.x, row = at / (kDepth / kWide), k = at % (kDepth / kWide) * kWide;
    bool inside = first + row < rows && column + k < columns;
    copy_async_or_zero(&tile[row][k], static_cast<const T*>(matrix) + static_cast<int64_t>(first + row) * columns + column + k,
                       inside);
  }
}

// Two neighbouring numbers to places i and i + 1 of a fragment.
template <class T, int kSize>
__device__ __forceinline__ void load_pair(Vec<T, kSize>& fragment, int i, const T* from) {
  Vec<T, 2> pair = load_wide<Vec<T, 2>>(from);
  fragment.v[i] = pair.v[0], fragment.v[i + 1] = pair.v[1];
}

// One step: 16 columns of a warp's rows of W and x, from (out, k) and (token, k) on.
template <class T>
__device__ __forceinline__ void multiply_step(float (&sums)[kOutTiles][kTokenTiles][4], const Stage<T>& stage, int out,
                                              int token, int k) {
  int row = threadIdx.x % 32 / 4, column = k + threadIdx.x % 4 * 2;
  Vec<T, 8> w[kOutTiles];
  Vec<T, 4> x[kTokenTiles];
  UNROLL
  for (int i = 0; i < kOutTiles; i++)
    UNROLL
    for (int j = 0; j < 4; j++)  // rows +0, +8, columns +0, +8
      load_pair(w[i], 2 * j, &stage[0][out + 16 * i + row + j % 2 * 8][column + j / 2 * 8]);
  UNROLL
  for (int i = 0; i < kTokenTiles; i++)
    UNROLL
    for (int j = 0; j < 2; j++) load_pair(x[i], 2 * j, &stage[1][token + 8 * i + row][column + 8 * j]);
  UNROLL
  for (int i = 0; i < kOutTiles; i++)
    UNROLL
    for (int j = 0; j < kTokenTiles; j++) mma_m16n8k16(sums[i][j], w[i].v, x[j].v);
}

template <class T>
__global__ void __launch_bounds__(kThreads) linear_l4_kernel(const __grid_constant__ LinearArgs p) {
  SHARED(Stage<T>, ring, [kStages]);
  int first_out = blockIdx.x * kTile, first_token = blockIdx.y * kTile;
  int stages = (p.in + kDepth - 1) / kDepth;
  auto copy = [&](int stage) {
    if (stage < stages) {
      copy_tile(ring[stage % kStages][0], p.weight, first_out, p.out, stage * kDepth, p.in);
      copy_tile(ring[stage % kStages][1], p.x, first_token, p.rows, stage * kDepth, p.in);
    }
    commit_copies();  // also where nothing was copied: waiting counts groups
  };
  int warp = threadIdx.x / 32, out = warp / 2 * 16 * kOutTiles, token = warp % 2 * 8 * kTokenTiles;
  for (int stage = 0; stage < kStages - 1; stage++) copy(stage);
  float sums[kOutTiles][kTokenTiles][4] = {};
  for (int stage = 0; stage < stages; stage++) {
    wait_copies<kStages - 2>();
    __syncthreads();  // everybody's copies of this stage have arrived, and the one before has been read
    copy(stage + kStages - 1);
    UNROLL
    for (int k = 0; k < kDepth; k += 16) multiply_step<T>(sums, ring[stage % kStages], out, token, k);
  }

  UNROLL
  for (int i = 0; i < 2 * kOutTiles; i++) {
    int row = first_out + out + 8 * i + threadIdx.x % 32 / 4;  // of W
    if (row >= p.out) return;
    float bias = p.bias ? to_float(static_cast<const T*>(p.bias)[row]) : 0.0f;
    UNROLL
    for (int j = 0; j < 2 * kTokenTiles; j++) {
      int to = first_token + token + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
      if (to < p.rows)
        static_cast<T*>(p.y)[static_cast<int64_t>(to) * p.out + row] = from_float<T>(sums[i / 2][j / 2][i % 2 * 2 + j % 2] + bias);
    }
  }
}

}  // namespace

void linear_l4(const LinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  dim3 grid(ceil_div(p.out, kTile), ceil_div(p.rows, kTile));
  if (p.dtype == DType::bf16) LAUNCH(linear_l4_kernel<bfloat16>, grid, kThreads, 0, stream_of(stream), p);
  if (p.dtype == DType::f16) LAUNCH(linear_l4_kernel<float16>, grid, kThreads, 0, stream_of(stream), p);
}

}  // namespace minillm::cuda
