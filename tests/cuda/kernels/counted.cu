// Kernels whose traffic can be counted by hand; test_simt.py has the numbers.

#include "dialect.h"

__global__ void copy(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}

__global__ void copy_wide(const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  store_wide(y + 4 * i, load_wide<Vec<float, 4>>(x + 4 * i));
}

__global__ void gather(const float* x, float* y, int stride) { y[threadIdx.x] = x[threadIdx.x * stride]; }

// One warp writes a 32 x 32 tile row by row and reads it column by column.
template <int kWidth>
__global__ void transpose(const float* x, float* y) {
  SHARED(float, tile, [32][kWidth]);
  for (int row = 0; row < 32; row++) tile[row][threadIdx.x] = x[row * 32 + threadIdx.x];
  __syncthreads();
  for (int row = 0; row < 32; row++) y[row * 32 + threadIdx.x] = tile[threadIdx.x][row];
}

__global__ void warp_sums(const float* x, float* y) {
  float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  SHARED(float, sums, [2]);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = sums[0] + sums[1];
}

__global__ void reverse_by_copies(const float* x, float* y) {
  SHARED(float, buffer, [64]);
  copy_async<4>(&buffer[threadIdx.x], &x[threadIdx.x]);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  y[threadIdx.x] = buffer[63 - threadIdx.x];
}

__global__ void broadcast_lane(const int* x, int* y, int lane) {
  y[threadIdx.x] = __shfl_sync(0xffffffff, x[threadIdx.x], lane);
}

__global__ void wide_rows(const float* x, float* y, int stride) {
  SHARED(float, tile, [32 * 8]);
  for (int i = threadIdx.x; i < 32 * 8; i += 32) tile[i] = x[i];
  __syncthreads();
  store_wide(y + 4 * threadIdx.x, load_wide<Vec<float, 4>>(&tile[threadIdx.x * stride]));
}

__global__ void where_am_i(int* y) {
  int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  y[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

template <class T>
__global__ void round_trip(const float* x, float* y) {
  y[blockIdx.x * blockDim.x + threadIdx.x] = to_float(from_float<T>(x[blockIdx.x * blockDim.x + threadIdx.x]));
}

// One warp: y [16, 8] = x [16, 16] * w [16, 8].
template <class T>
__global__ void tensor_core(const float* x, const float* w, float* y) {
  int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
  alignas(4) T a[8], b[4];
  float c[4];
  for (int i = 0; i < 4; i++) c[i] = y[(g + i / 2 * 8) * 8 + t + i % 2];
  for (int i = 0; i < 8; i++) a[i] = from_float<T>(x[(g + i / 2 % 2 * 8) * 16 + t + i / 4 * 8 + i % 2]);
  for (int i = 0; i < 4; i++) b[i] = from_float<T>(w[(t + i / 2 * 8 + i % 2) * 8 + g]);
  mma_m16n8k16(c, a, b);
  for (int i = 0; i < 4; i++) y[(g + i / 2 * 8) * 8 + t + i % 2] = c[i];
}

extern "C" {
void run_mma_bfloat16(const float* x, const float* w, float* y) { LAUNCH(tensor_core<bfloat16>, 1, 32, 0, 0, x, w, y); }
void run_mma_float16(const float* x, const float* w, float* y) { LAUNCH(tensor_core<float16>, 1, 32, 0, 0, x, w, y); }
void run_copy(const float* x, float* y, int n) { LAUNCH(copy, (n + 63) / 64, 64, 0, 0, x, y, n); }
void run_copy_wide(const float* x, float* y, int n) { LAUNCH(copy_wide, n / 256, 64, 0, 0, x, y); }
void run_gather(const float* x, float* y, int stride) { LAUNCH(gather, 1, 32, 0, 0, x, y, stride); }
void run_transpose(const float* x, float* y) { LAUNCH(transpose<32>, 1, 32, 0, 0, x, y); }
void run_transpose_padded(const float* x, float* y) { LAUNCH(transpose<33>, 1, 32, 0, 0, x, y); }
void run_warp_sums(const float* x, float* y, int blocks) { LAUNCH(warp_sums, blocks, 64, 0, 0, x, y); }
void run_reverse(const float* x, float* y) { LAUNCH(reverse_by_copies, 1, 64, 0, 0, x, y); }
void run_broadcast(const int* x, int* y, int lane) { LAUNCH(broadcast_lane, 1, 32, 0, 0, x, y, lane); }
void run_wide_rows(const float* x, float* y, int stride) { LAUNCH(wide_rows, 1, 32, 0, 0, x, y, stride); }
void run_where(int* y) { LAUNCH(where_am_i, dim3(2, 3, 2), dim3(4, 4, 2), 0, 0, y); }
void run_bfloat16(const float* x, float* y, int n) { LAUNCH(round_trip<bfloat16>, n / 32, 32, 0, 0, x, y); }
void run_float16(const float* x, float* y, int n) { LAUNCH(round_trip<float16>, n / 32, 32, 0, 0, x, y); }
void run_threads(float* y, int threads) { LAUNCH(copy, 1, threads, 0, 0, y, y, 1); }
void run_empty(float* y) { LAUNCH(copy, 0, 32, 0, 0, y, y, 1); }
}
