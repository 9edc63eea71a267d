// Lab 14: a product with weights of 4 bits, on a CPU and in CUDA.
//
// Write the code between each pair of `// begin` and `// end`. The rest is given; a change of it has no effect.
// Functions of your own go between `// begin helpers` and `// end helpers`; begin them with `CPU` or `__device__`.
// Sections 14.1 to 14.6 are plain C++. The simulator runs them in one thread, which finds every access outside of an
// array (minillm labs check 14). g++ compiles them for speed (minillm labs bench 14).
//
//     y [rows, out] = x [rows, in] W^T       weight (o, k) = scale * code + minimum, code 0 .. 15
//
//                 inputs 0 .. 63        64 .. 127            a chunk: 64 inputs of 16 outputs, 640 bytes
//     outputs  | -- chunk 0 -- | -- chunk 1 -- | ..          the chunks of a block of 16 outputs follow each other,
//     0 .. 15  | scales minima line 0 .. line 7 | ..         then come those of the next 16 outputs

#include "dialect.h"

#define NOT_WRITTEN()
#define CPU __host__ __device__ inline  // plain C++; a kernel may call it too, so that the simulator can check it

constexpr int kSide = 16;                // outputs side by side in a chunk
constexpr int kGroup = 64;               // inputs that share a scale and a minimum
constexpr int kCodes = 8;                // codes of 4 bits in a word of 32
constexpr int kLines = kGroup / kCodes;  // of a chunk
constexpr int kRows = 4;                 // rows of x that use the weights when they are read once
constexpr int kWarps = 2;                // of a block of threads
constexpr int kThreads = 32 * kWarps;

// The code of input i of the group, output o: bits 4 * (i % 8) .. 4 * (i % 8) + 3 of line[i / 8][o].
struct Chunk {
  float scale[kSide], minimum[kSide];  // in front: a stream of addresses that only grow
  uint32_t line[kLines][kSide];        // line[l][o]: inputs 8 l .. 8 l + 7 of output o
};

// begin helpers
// end helpers

// ---- 14.1 -------------------------------------------------------------------------------------

// Round `count` weights (1 .. 64) of one output to codes. The minimum is the smallest weight, the scale is a 15th of
// the distance from it to the largest. A weight becomes the nearest code: 0 is the minimum, 15 the largest weight. If
// all are equal, the scale and all codes are 0. Write the scale, the minimum and all eight words of output `output`,
// and nothing of another output. What the chunk held before does not matter. Codes of inputs from `count` on are 0; w
// ends there.
CPU void pack_group(Chunk& chunk, int output, const float* w, int count) {
  // begin 14.1
  float low = w[0], high = w[0];
  for (int i = 1; i < count; i++) low = fminf(low, w[i]), high = fmaxf(high, w[i]);
  float scale = (high - low) / 15;
  chunk.scale[output] = scale;
  chunk.minimum[output] = low;
  for (int line = 0; line < kLines; line++) {
    uint32_t word = 0;
    for (int k = 0; k < kCodes; k++) {
      int i = line * kCodes + k;
      uint32_t code = i < count && scale > 0 ? static_cast<uint32_t>(lrintf((w[i] - low) / scale)) : 0;
      word |= code << 4 * k;
    }
    chunk.line[line][output] = word;
  }
  // end 14.1
}

// The whole matrix w [out, in]; the chunks hold zeros before.
CPU void pack(Chunk* chunks, const float* w, int out, int in) {
  int groups = (in + kGroup - 1) / kGroup;
  for (int output = 0; output < out; output++)
    for (int group = 0; group < groups; group++)
      pack_group(chunks[output / kSide * groups + group], output % kSide, w + output * in + group * kGroup,
                 min(kGroup, in - group * kGroup));
}

// ---- 14.2 -------------------------------------------------------------------------------------

// One line, as numbers: codes[k][o] is the code of the line's input k (0 .. 7), output o.
CPU void unpack_line(float (&codes)[kCodes][kSide], const uint32_t (&line)[kSide]) {
  // begin 14.2
  for (int k = 0; k < kCodes; k++)
    for (int o = 0; o < kSide; o++) codes[k][o] = static_cast<int>(line[o] >> 4 * k & 15);
  // end 14.2
}

// ---- 14.3 -------------------------------------------------------------------------------------

// sums[o] = the sum of code (i, o) * x[i] over the first `count` (1 .. 64) inputs of the chunk. Codes as they are: no
// scale and no minimum. x ends after `count` numbers. The old content of sums does not matter.
CPU void dot_group(float (&sums)[kSide], const Chunk& chunk, const float* x, int count) {
  // begin 14.3
  for (float& sum : sums) sum = 0;
  for (int i = 0; i < count; i += kCodes) {
    float codes[kCodes][kSide];
    unpack_line(codes, chunk.line[i / kCodes]);
    for (int k = 0; k < kCodes && i + k < count; k++)
      for (int o = 0; o < kSide; o++) sums[o] += codes[k][o] * x[i + k];
  }
  // end 14.3
}

// ---- 14.4 -------------------------------------------------------------------------------------

// Add a group to y: y[o] grows by the sum of weight (i, o) * x[i] over the group's `count` inputs. sums[o] is what
// dot_group gives. Read each scale and each minimum once (twice is allowed), not once for each code or each x.
CPU void add_group(float (&y)[kSide], const Chunk& chunk, const float (&sums)[kSide], const float* x, int count) {
  // begin 14.4
  float total = 0;
  for (int i = 0; i < count; i++) total += x[i];
  for (int o = 0; o < kSide; o++) y[o] += chunk.scale[o] * sums[o] + chunk.minimum[o] * total;
  // end 14.4
}

// ---- 14.5 -------------------------------------------------------------------------------------

// 16 outputs of `rows` rows (1 .. kRows): y[r][o] is the sum over all `in` inputs. x is [rows, in]. `chunks` is the
// first chunk of the block; `in` need not be a multiple of 64, and past the end there is neither a chunk nor an x.
// Rows of y from `rows` on are not looked at. The lines are read once for all rows: unpack a line, then use it for
// every row. The bits of a row do not depend on `rows` or on the other rows.
CPU void multiply_rows(float (&y)[kRows][kSide], const Chunk* chunks, const float* x, int rows, int in) {
  // begin 14.5
  for (int r = 0; r < rows; r++)
    for (float& sum : y[r]) sum = 0;
  for (int first = 0; first < in; first += kGroup, chunks++) {
    int count = min(kGroup, in - first);
    float sums[kRows][kSide] = {};
    for (int i = 0; i < count; i += kCodes) {
      float codes[kCodes][kSide];
      unpack_line(codes, chunks->line[i / kCodes]);
      for (int r = 0; r < rows; r++) {
        float numbers[kCodes] = {};
        for (int k = 0; k < kCodes && i + k < count; k++) numbers[k] = x[r * in + first + i + k];
        for (int o = 0; o < kSide; o++)
          for (int k = 0; k < kCodes; k++) sums[r][o] += codes[k][o] * numbers[k];
      }
    }
    for (int r = 0; r < rows; r++) add_group(y[r], *chunks, sums[r], x + r * in + first, count);
  }
  // end 14.5
}

// ---- 14.6 -------------------------------------------------------------------------------------

// y [rows, out] = x [rows, in] W^T for any sizes. Use multiply_rows for up to kRows rows at a time, so that the
// matrix is read once for kRows rows. The last block may have fewer than 16 outputs, and the last rows may be fewer
// than kRows.
CPU void matmul(float* y, const Chunk* chunks, const float* x, int rows, int out, int in) {
  // begin 14.6
  int groups = (in + kGroup - 1) / kGroup;
  for (int first_out = 0; first_out < out; first_out += kSide, chunks += groups)
    for (int first = 0; first < rows; first += kRows) {
      float part[kRows][kSide];
      int count = min(kRows, rows - first), outputs = min(kSide, out - first_out);
      multiply_rows(part, chunks, x + first * in, count, in);
      for (int r = 0; r < count; r++)
        for (int o = 0; o < outputs; o++) y[(first + r) * out + first_out + o] = part[r][o];
    }
  // end 14.6
}

// ---- 14.7 -------------------------------------------------------------------------------------

// CUDA. One warp adds a chunk to the sums of kRows rows. sums[r] of lane l belongs to output l % 16: the lanes 0 ..
// 15 take some of the lines, the lanes 16 .. 31 the others, and the sum of both is the result (14.8 adds them). x is
// in shared memory, with zeros where there is no row or no input. Each number of the chunk is read once by the warp,
// and the lanes of an access read words that lie side by side: 20 sectors of 32 bytes, and no more. Scales and minima
// may be read by both halves, at the same time.
__device__ __forceinline__ void multiply_chunk(float (&sums)[kRows], const Chunk& chunk, float (&x)[kRows][kGroup]) {
  // begin 14.7
  int output = threadIdx.x % kSide, half = threadIdx.x % 32 / kSide;
  float dots[kRows] = {}, totals[kRows] = {};
  for (int line = half; line < kLines; line += 2) {
    uint32_t word = chunk.line[line][output];
    for (int k = 0; k < kCodes; k++) {
      float code = word >> 4 * k & 15;
      for (int r = 0; r < kRows; r++) {
        float number = x[r][line * kCodes + k];
        dots[r] += code * number;
        totals[r] += number;
      }
    }
  }
  float scale = chunk.scale[output], minimum = chunk.minimum[output];
  for (int r = 0; r < kRows; r++) sums[r] += scale * dots[r] + minimum * totals[r];
  // end 14.7
}

// ---- the CPU's part in a kernel of one thread, and as plain C++ -------------------------------

__global__ void pack_in_a_thread(const float* w, Chunk* chunks, int out, int in) {
  if (threadIdx.x == 0) pack(chunks, w, out, in);
}

extern "C" void run_pack(const float* w, Chunk* chunks, int out, int in) {
  LAUNCH(pack_in_a_thread, 1, 32, 0, 0, w, chunks, out, in);
}

__global__ void matmul_in_a_thread(const float* x, const Chunk* chunks, float* y, int rows, int out, int in) {
  if (threadIdx.x == 0) matmul(y, chunks, x, rows, out, in);
}

extern "C" void run_matmul(const float* x, const Chunk* chunks, float* y, int rows, int out, int in) {
  LAUNCH(matmul_in_a_thread, 1, 32, 0, 0, x, chunks, y, rows, out, in);
}

extern "C" void run_plain(const float* x, const Chunk* chunks, float* y, int rows, int out, int in) {
  matmul(y, chunks, x, rows, out, in);
}

// ---- 14.8 -------------------------------------------------------------------------------------

// The product in CUDA. Block (i, j) of threads: rows 4 j .. 4 j + 3 of x. Its warp w has the 16 outputs of block
// `block` of the matrix, which may not exist: then the warp only helps. For each group all threads copy x to x_group
// together (with zeros where there is no row or no input), and each warp multiplies its chunk with it. At the end the
// two halves of a warp are added, and what exists of y is written once. The matrix is read once for four rows, x once
// for two warps. The bits of a row do not depend on the other rows. Two barriers for each group are enough; more than
// three are too many.
__global__ void __launch_bounds__(kThreads) linear(const float* x, const Chunk* chunks, float* y, int rows, int out,
                                                   int in) {
  SHARED(float, x_group, [kRows][kGroup]);  // __shared__ float x_group[kRows][kGroup];
  int first_row = blockIdx.y * kRows, block = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  int blocks = (out + kSide - 1) / kSide, groups = (in + kGroup - 1) / kGroup;
  float sums[kRows] = {};
  // begin 14.8
  for (int group = 0; group < groups; group++) {
    for (int i = threadIdx.x; i < kRows * kGroup; i += kThreads) {
      int row = first_row + i / kGroup, column = group * kGroup + i % kGroup;
      x_group[i / kGroup][i % kGroup] = row < rows && column < in ? x[row * in + column] : 0;
    }
    __syncthreads();
    if (block < blocks) multiply_chunk(sums, chunks[block * groups + group], x_group);
    __syncthreads();
  }
  for (int r = 0; r < kRows; r++) {
    float sum = sums[r] + __shfl_xor_sync(0xffffffff, sums[r], 16);
    int row = first_row + r, output = block * kSide + lane;
    if (lane < kSide && row < rows && output < out) y[row * out + output] = sum;
  }
  // end 14.8
}

extern "C" void run_linear(const float* x, const Chunk* chunks, float* y, int rows, int out, int in) {
  dim3 grid((out + kSide * kWarps - 1) / (kSide * kWarps), (rows + kRows - 1) / kRows);
  LAUNCH(linear, grid, kThreads, 0, 0, x, chunks, y, rows, out, in);
}
