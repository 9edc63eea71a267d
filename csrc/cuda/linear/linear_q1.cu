// linear, quantised, rung 1: y = x W^T + bias with codes that are unpacked on the way into shared memory.
//
//     W, 16 outputs    | scales | line | line | ...        a thread reads one word, and the scale if its group ends there
//                                   |
//     shared memory    numbers [128 inputs][16 outputs], scales and minima of the groups that end in this tile
//     x, 16 rows       numbers [16 rows][128 inputs], in the order of the codes
//
// It is l2 with other weights: 16 x 16 outputs, one for each thread, and the next tiles on their way while these are
// multiplied. An output has two sums. `partial` goes over the inputs of one group, with whole numbers or floats of few
// bits as weights; where the group ends, it is folded into the total:
//
//     total = minimum * (sum of x in the group) + total,    then    total = scale * partial + total
//
// So a scale is applied once a group. The inputs come in one order and the groups too, whatever the number of rows:
// contract C2. A group may be longer than a tile, or shorter; where the tiles end changes nothing.
//
// With activations in int8 (`round_x`) the tile of x is rounded in place: 16 threads have a row, each 8 inputs, and those of
// a group find its largest number by shuffles. The products are then sums of whole numbers, which are exact in fp32 and so
// have the bits of csrc/cpu. A dp4a would multiply four at once.
//
// linear_q1_experts is the same for rows that lie expert by expert (row_tiles.h). An expert's matrix is a run of whole
// blocks of 16 outputs.
//
// Bytes: codes and scales once for every 16 rows, and x once for every 16 outputs. FLOPs: 2 * rows * out * in. Limit:
// with few rows the latency of instructions, as 15 of 16 threads have no output of theirs; with many, shared memory.
// Left out: register tiles, codes in registers for tensor cores (Marlin, Frantar et al. 2408.11743), split-K (which
// would change the order of the sum).
// Sources: Frantar et al. 2210.17323 and Lin et al. 2306.00978 (weights in 4 bits, scales by group).

#include "codes.h"
#include "row_tiles.h"

namespace minillm::cuda {
namespace {

constexpr int kTile = 16;    // outputs per side; a block of the matrix has as many
constexpr int kDepth = 128;  // inputs in shared memory
constexpr int kThreads = kTile * kTile;
constexpr int kLoads = kTile * kDepth / kThreads;  // elements of x for each thread
constexpr int kRun = kDepth / kTile;               // inputs that a thread rounds

// Rows of the same column lie in different banks.
constexpr int kXPitch = kDepth + 1;

// The two lines that a warp unpacks lie 16 banks apart.
template <int kBits>
constexpr int kPitch = kTile + kTile / kLineInputs<kBits>;
template <int kBits>
constexpr int kLines = kDepth / kLineInputs<kBits>;  // of a tile
template <int kBits>
constexpr int kWords = kLines<kBits> * kTile / kThreads;  // of a tile, for each thread

struct CodesLinearArgs {
  LinearArgs p;
  CodesView w;
};
struct CodesExpertArgs {
  ExpertLinearArgs p;
  CodesView w;
};

// What a thread has loaded of the next tiles. A line in which no group ends has no scale.
template <int kBits, class T>
struct Loaded {
  T x[kLoads];
  uint32_t codes[kWords<kBits>];
  float scale[kWords<kBits>], minimum[kWords<kBits>];
};

// Rows that a block multiplies, and the part of the matrix.
struct Tile {
  int first, end;     // rows
  const char* block;  // 16 outputs
  const void* bias;   // of the whole matrix, or null
};

template <int kBits, class T>
__device__ __forceinline__ void load_tiles(Loaded<kBits, T>& next, const LinearArgs& p, const CodesView& w,
                                           const Tile& tile, int column) {
  int k = column + threadIdx.x % kDepth, input = k < p.in && w.order ? w.order[k] : k;
  UNROLL
  for (int i = 0; i < kLoads; i++) {
    int row = tile.first + (i * kThreads + threadIdx.x) / kDepth;
    bool inside = row < tile.end && k < p.in;
    next.x[i] = inside ? static_cast<const T*>(p.x)[static_cast<int64_t>(row) * p.in + input] : from_float<T>(0.0f);
  }
  UNROLL
  for (int i = 0; i < kWords<kBits>; i++) {
    int at = i * kThreads + threadIdx.x, line = column / kLineInputs<kBits> + at / kTile, output = at % kTile;
    next.codes[i] = 0, next.scale[i] = 0, next.minimum[i] = 0;
    if (line >= w.lines) continue;
    int g = line / w.lines_in_group, inside = line % w.lines_in_group;
    next.codes[i] = w.word(tile.block, g, inside, output);
    if (inside + 1 < w.lines_in_group && line + 1 < w.lines) continue;
    next.scale[i] = w.scale(tile.block, g, output);
    if (w.minimum) next.minimum[i] = w.minimum_of(tile.block, g, output);
  }
}

// Rounds a tile of x to int8. Every group lies in one tile: it has kRun inputs or more and divides kDepth, or is the only one.
// Writes the codes over the numbers, and each run's scale.
__device__ __forceinline__ void round_x(float (&x_tile)[kTile][kXPitch], float (&scales)[kTile][kTile], const CodesView& w) {
  const int row = threadIdx.x / kTile, run = threadIdx.x % kTile;
  float *x = &x_tile[row][run * kRun], largest = 0, zeros = 0;
  UNROLL
  for (int i = 0; i < kRun; i++) {
    largest = fmaxf(largest, fabsf(x[i]));
    zeros = fmaf(x[i], 0.0f, zeros);  // NaN if a number is NaN or infinite
  }
  for (int lanes = 1; lanes < w.runs; lanes *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, lanes));
    zeros += __shfl_xor_sync(0xffffffff, zeros, lanes);
  }
  float scale = zeros == 0 ? largest / 127.0f : __int_as_float(0x7fc00000);
  UNROLL
  for (int i = 0; i < kRun; i++) x[i] = scale > 0 ? fminf(fmaxf(rintf(x[i] / scale), -127.0f), 127.0f) : 0.0f;
  scales[row][run] = scale;
}

// Outputs of the tile's rows, at most kTile, and of one block of the matrix.
template <int kBits, class T>
__device__ __forceinline__ void multiply_codes(const LinearArgs& p, const CodesView& w, const Tile& tile) {
  SHARED(float, x_tile, [kTile][kXPitch]);
  SHARED(float, w_tile, [kDepth][kPitch<kBits>]);
  SHARED(float, scales, [kLines<kBits>][kTile]);
  SHARED(float, minima, [kLines<kBits>][kTile]);
  SHARED(float, x_scales, [kTile][kTile]);
  int local_row = threadIdx.x / kTile, local_col = threadIdx.x % kTile;
  int row = tile.first + local_row, col = blockIdx.x * kTile + local_col;
  bool inside = row < tile.end && col < p.out;

  Loaded<kBits, T> next;
  load_tiles(next, p, w, tile, 0);
  float total = 0, partial = 0, x_sum = 0;
  int left = w.group;  // inputs until the group ends
  for (int column = 0; column < p.in; column += kDepth) {
    __syncthreads();  // the previous tiles have been read
    UNROLL
    for (int i = 0; i < kLoads; i++)
      x_tile[(i * kThreads + threadIdx.x) / kDepth][threadIdx.x % kDepth] = to_float(next.x[i]);
    UNROLL
    for (int i = 0; i < kWords<kBits>; i++) {
      int at = i * kThreads + threadIdx.x, line = at / kTile, output = at % kTile;
      UNROLL
      for (int j = 0; j < kLineInputs<kBits>; j++)
        w_tile[line * kLineInputs<kBits> + j][output] = number_of<kBits>(w.codes, code_in<kBits>(next.codes[i], j));
      scales[line][output] = next.scale[i];
      minima[line][output] = next.minimum[i];
    }
    __syncthreads();
    if (w.runs) {
      round_x(x_tile, x_scales, w);
      __syncthreads();
    }
    load_tiles(next, p, w, tile, column + kDepth);  // on its way during the products below
    if (!inside) continue;
    int depth = min(kDepth, p.in - column);
    for (int k = 0; k < depth;) {
      int end = min(k + left, depth);
      left -= end - k;
      for (; k < end; k++) {
        float x = x_tile[local_row][k];
        partial = fmaf(w_tile[k][local_col], x, partial);
        if (w.minimum) x_sum += x;
      }
      if (left > 0 && column + k < p.in) break;  // the group goes on in the next tile
      int line = (k - 1) / kLineInputs<kBits>;
      float scale = scales[line][local_col], x_scale = w.runs ? x_scales[local_row][(k - 1) / kRun] : 1.0f;
      if (w.minimum) total = fmaf(minima[line][local_col], x_sum * x_scale, total);
      total = fmaf(scale * x_scale, partial, total);
      partial = x_sum = 0, left = w.group;
    }
  }
  if (!inside) return;
  if (tile.bias) total += to_float(static_cast<const T*>(tile.bias)[col]);
  static_cast<T*>(p.y)[static_cast<int64_t>(row) * p.out + col] = from_float<T>(total);
}

// A thread has at most 64 registers.
constexpr int kBlocks = kResidentThreads / kThreads / 2;

template <int kBits, class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_q1_kernel(const __grid_constant__ CodesLinearArgs a) {
  const char* block = a.w.block_of(static_cast<int64_t>(blockIdx.x) * kTile);
  multiply_codes<kBits, T>(a.p, a.w, {static_cast<int>(blockIdx.y) * kTile, a.p.rows, block, a.p.bias});
}

// One block less: the places of the expert take registers, and ptxas spills on sm_80.
template <int kBits, class T>
__global__ void __launch_bounds__(kThreads, kBlocks - 1)
    linear_q1_experts_kernel(const __grid_constant__ CodesExpertArgs a) {
  ExpertTile tile = find_tile<kTile>(a.p);
  if (tile.end == 0) return;  // the whole block returns: no thread waits at a barrier
  int64_t above = static_cast<int64_t>(tile.expert) * a.p.pitch;  // rows of the matrices of lower experts
  const char* block = a.w.block_of(above + static_cast<int64_t>(blockIdx.x) * kTile);
  const void* bias = a.p.bias ? static_cast<const T*>(a.p.bias) + above : nullptr;
  multiply_codes<kBits, T>(a.p, a.w, {tile.first, tile.end, block, bias});
}

}  // namespace

void linear_q1(const LinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  dim3 grid(ceil_div(p.out, kTile), ceil_div(p.rows, kTile));
  const CodesLinearArgs args = {p, CodesView(p.weight, p.form, p.in)};
  with_bits_and_type(p.form.codes, p.dtype, [&](auto bits, auto zero) {
    LAUNCH((linear_q1_kernel<decltype(bits)::value, decltype(zero)>), grid, kThreads, 0, stream_of(stream), args);
  });
}

void linear_q1_experts(const ExpertLinearArgs& p, Stream stream) {
  if (p.rows == 0 || p.out == 0) return;
  dim3 grid(ceil_div(p.out, kTile), most_tiles<kTile>(p));
  const CodesExpertArgs args = {p, CodesView(p.weight, p.form, p.in)};
  with_bits_and_type(p.form.codes, p.dtype, [&](auto bits, auto zero) {
    LAUNCH((linear_q1_experts_kernel<decltype(bits)::value, decltype(zero)>), grid, kThreads, 0, stream_of(stream), args);
  });
}

}  // namespace minillm::cuda
