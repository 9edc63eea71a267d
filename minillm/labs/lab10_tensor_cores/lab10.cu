// Lab 10: a matrix product on tensor cores.
//
// Write the code between each pair of `// begin` and `// end`. The rest is given; a change of it has no effect.
// Functions of your own go between `// begin helpers` and `// end helpers`.
// The file is CUDA: the simulator runs it (minillm labs check 10), and nvcc compiles the same source.
//
//     y [tokens, out] = x W^T            a block: 32 outputs of 8 tokens. Each of its two warps: 16 outputs
//
//                     columns 0..63   64..127   128..
//     W [out, in]   | ============= | ------- | -- |      32 rows     a stage is 64 columns of both, in shared memory.
//     x [tokens, in]| ============= | ------- | -- |       8 rows     While one is multiplied, the next is copied.

#include "dialect.h"

#define NOT_WRITTEN()

constexpr int kWarps = 2;                // of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kOut = 16 * kWarps;        // outputs of a block: rows of W
constexpr int kTokens = 8;               // tokens of a block: rows of x
constexpr int kDepth = 64;               // columns of a stage
constexpr int kSteps = kDepth / 16;      // an mma multiplies 16 columns
constexpr int kWide = 8;                 // numbers in 16 bytes: a chunk
constexpr int kChunks = kDepth / kWide;  // of a row in a stage
constexpr int kRoom = 72;                // numbers that a row of a stage may take in shared memory

// What a lane holds of the factors of one mma.
struct Fragments {
  Vec<bfloat16, 8> a;  // f.a.v[0] .. f.a.v[7]
  Vec<bfloat16, 4> b;  // f.b.v[0] .. f.b.v[3]
};

// ---- 10.4 -------------------------------------------------------------------------------------

// The layout of a stage: chunk `chunk` (0 .. 7) of row `row` begins at number place(row, chunk) of its array, a
// multiple of kWide. No two chunks share a number, and the first n rows (n = 8, 16, 24 or 32) lie in numbers 0 ..
// n * kRoom - 1. Two accesses must need one wavefront for each eight lanes, which is the minimum for 16 bytes a lane:
// eight lanes store the eight chunks of a row, and eight lanes read one chunk of the rows 8 i .. 8 i + 7 (ldmatrix).
// Do this section after 10.3: the checks of 10.3, 10.5 and 10.6 use a layout of the lab, 10.7 uses yours.
__device__ __forceinline__ int place(int row, int chunk) {
  // begin 10.4
  return row * kDepth + (chunk ^ row % 8) * kWide;
  // end 10.4
}

// begin helpers
// end helpers

// ---- 10.1 -------------------------------------------------------------------------------------

// A lane's numbers of both factors of one mma: 16 rows of W and 8 rows of x, 16 columns of both, in shared memory.
// Number (row, column) of W is w[row * stride + column], of x it is x[row * stride + column]; stride is even. The a of
// the mma is W, its b is x turned over: b (k, n) is x (n, k). Two neighbouring numbers of a row are one access of 4
// bytes: load_wide<Vec<bfloat16, 2>>(p) has them as .v[0] and .v[1]. Six accesses of the warp are enough; more are too
// many.
__device__ __forceinline__ void load_by_hand(Fragments& f, const bfloat16* w, const bfloat16* x, int stride) {
  // begin 10.1
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
  for (int i = 0; i < 8; i += 2) {
    auto two = load_wide<Vec<bfloat16, 2>>(w + (g + i / 2 % 2 * 8) * stride + t + i / 4 * 8);
    f.a.v[i] = two.v[0], f.a.v[i + 1] = two.v[1];
  }
  for (int i = 0; i < 4; i += 2) {
    auto two = load_wide<Vec<bfloat16, 2>>(x + g * stride + t + i * 4);
    f.b.v[i] = two.v[0], f.b.v[i + 1] = two.v[1];
  }
  // end 10.1
}

// ---- 10.2 -------------------------------------------------------------------------------------

// One warp: 16 outputs of 8 tokens over `columns` columns, a multiple of 16. w and x are as in 10.1. Output m of token
// n is y[n * 16 + m], in global memory, written once. Each output is one sum from column 0 to the last: mma after mma
// adds to the same four numbers. Another order has other bits, and is wrong. One mma for each 16 columns.
__device__ __forceinline__ void multiply_tile(float* y, const bfloat16* w, const bfloat16* x, int stride, int columns) {
  // begin 10.2
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2;
  float sums[4] = {};
  for (int k = 0; k < columns; k += 16) {
    Fragments f;
    load_by_hand(f, w + k, x + k, stride);
    mma_m16n8k16(sums, f.a.v, f.b.v);
  }
  for (int i = 0; i < 4; i++) y[(t + i % 2) * 16 + g + i / 2 * 8] = sums[i];
  // end 10.2
}

// ---- 10.3 -------------------------------------------------------------------------------------

// As 10.1, but from a stage, whose layout is place(row, chunk), and with ldmatrix: columns 16 * step .. 16 * step + 15
// of the rows first_row .. first_row + 15 of W and of the rows 0 .. 7 of x. Two accesses of the warp are enough
// (load_matrices<4> and load_matrices<2>); more than three are too many.
__device__ __forceinline__ void load_fragments(Fragments& f, const bfloat16* w, const bfloat16* x, int first_row,
                                               int step) {
  // begin 10.3
  int lane = threadIdx.x % 32;
  load_matrices<4>(f.a.v, w + place(first_row + lane % 16, 2 * step + lane / 16));
  load_matrices<2>(f.b.v, x + place(lane % 8, 2 * step + lane / 8 % 2));
  // end 10.3
}

// ---- 10.5 -------------------------------------------------------------------------------------

// Start the copy of one stage of a matrix [rows, columns] in global memory: columns `column` .. column + 63 of its rows
// `first` .. first + kRows - 1, to `stage`, row by row of the layout. What is past the last row or column becomes zero,
// and is not read. `columns` is a multiple of 8, so a chunk of 16 bytes is inside or outside as a whole. Use
// copy_async_or_zero: the copies are on their way when the function returns. No commit, wait or barrier here: the
// caller does that. All kThreads threads call it together. The lanes of a warp read neighbouring chunks, so that each
// sector of 32 bytes is fetched once.
template <int kRows>
__device__ __forceinline__ void copy_rows(bfloat16* stage, const bfloat16* from, int first, int rows, int columns,
                                          int column) {
  // begin 10.5
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    int row = i / kChunks, chunk = i % kChunks, at = column + chunk * kWide;
    const bfloat16* source = from + (first + row) * columns + at;
    copy_async_or_zero(stage + place(row, chunk), source, first + row < rows && at < columns);
  }
  // end 10.5
}

// ---- 10.6 -------------------------------------------------------------------------------------

// y [tokens, out] = x [tokens, in] times weight [out, in] turned over. Block (i, j): outputs 32 i .. 32 i + 31 of the
// tokens 8 j .. 8 j + 7. `in` is a multiple of 8, `out` and `tokens` are any numbers.
//
// Copy stage after stage (copy_rows<kOut> of W to w_stages[0] or [1], copy_rows<kTokens> of x to x_stages[0] or [1]),
// two in turns: the copy of the next stage is started before this one is multiplied. A stage may be read when its
// copies were waited for and all threads know it; it may be overwritten when all have read it. Each warp multiplies its
// rows of W (16) with load_fragments, in one sum from column 0 to the last. Sums are rounded to bfloat16 when they are
// written (from_float<bfloat16>), and only where y exists. A block reads its rows of W and of x once. Two barriers for
// each stage are enough; more than three are too many.
__global__ void __launch_bounds__(kThreads) linear(const bfloat16* x, const bfloat16* weight, bfloat16* y, int tokens,
                                                   int out, int in) {
  SHARED(bfloat16, w_stages, [2][kOut * kRoom]);  // __shared__ bfloat16 w_stages[2][kOut * kRoom];
  SHARED(bfloat16, x_stages, [2][kTokens * kRoom]);
  int first_out = blockIdx.x * kOut, first_token = blockIdx.y * kTokens;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int stages = (in + kDepth - 1) / kDepth;
  float sums[4] = {};
  // begin 10.6
  auto copy_stage = [&](int stage) {
    copy_rows<kOut>(w_stages[stage % 2], weight, first_out, out, in, stage * kDepth);
    copy_rows<kTokens>(x_stages[stage % 2], x, first_token, tokens, in, stage * kDepth);
  };
  copy_stage(0);
  commit_copies();
  for (int stage = 0; stage < stages; stage++) {
    if (stage + 1 < stages) copy_stage(stage + 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    for (int step = 0; step < kSteps; step++) {
      Fragments f;
      load_fragments(f, w_stages[stage % 2], x_stages[stage % 2], 16 * warp, step);
      mma_m16n8k16(sums, f.a.v, f.b.v);
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; i++) {
    int row = first_out + 16 * warp + lane / 4 + i / 2 * 8, token = first_token + lane % 4 * 2 + i % 2;
    if (row < out && token < tokens) y[token * out + row] = from_float<bfloat16>(sums[i]);
  }
  // end 10.6
}

extern "C" void run_linear(const bfloat16* x, const bfloat16* weight, bfloat16* y, int tokens, int out, int in) {
  dim3 grid((out + kOut - 1) / kOut, (tokens + kTokens - 1) / kTokens);
  LAUNCH(linear, grid, kThreads, 0, 0, x, weight, y, tokens, out, in);
}
