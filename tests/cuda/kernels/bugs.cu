// One bug per kernel. A comment on the line says what the simulator must report for this line:
//   BUG kind       an error of this kind, in both flavours
//   BUG-CHECK kind only the check flavour reports it
//   BUG-ASAN what  only the asan flavour reports it, with this text; it also reports all accesses out of bounds
//   OTHER          the line of the second access, which the message must name too

#include "dialect.h"

__global__ void no_barrier(const float* x, float* y) {
  SHARED(float, row, [64]);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = x[threadIdx.x];  // BUG-CHECK race no_barrier
  y[threadIdx.x] = row[threadIdx.x ^ 32];  // OTHER no_barrier
}

__global__ void no_second_barrier(const float* x, float* y) {
  SHARED(float, row, [64]);
  for (int i = 0; i < 2; i++) {
    row[threadIdx.x] = x[threadIdx.x] + i;  // OTHER no_second_barrier
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x ^ 32];  // BUG-CHECK race no_second_barrier
  }
}

__global__ void no_syncwarp(const float* x, float* y) {
  SHARED(float, row, [32]);
  row[threadIdx.x] = x[threadIdx.x];  // OTHER no_syncwarp
  float sum = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);  // a shuffle orders no memory
  y[threadIdx.x] = sum + row[31 - threadIdx.x];  // BUG-CHECK race no_syncwarp
}

__global__ void two_blocks_one_place(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] + blockIdx.x;  // BUG-CHECK race two_blocks_one_place
}

__global__ void blocks_read_and_write(float* x) {
  if (blockIdx.x == 1)
    x[threadIdx.x] = 0;  // BUG-CHECK race blocks_read_and_write
  else
    x[64 + threadIdx.x] = x[threadIdx.x];  // OTHER blocks_read_and_write
}

__global__ void uninitialised(float* y) {
  SHARED(float, row, [64]);
  if (threadIdx.x < 63) row[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = row[threadIdx.x];  // BUG-CHECK uninitialised uninitialised
}

__global__ void left_by_the_block_before(float* y) {
  SHARED(float, row, [32]);
  if (blockIdx.x == 0) row[threadIdx.x] = 1;
  __syncthreads();
  y[blockIdx.x * 32 + threadIdx.x] = row[threadIdx.x];  // BUG-CHECK uninitialised left_by_the_block_before
}

__global__ void copy_not_waited(const float* x, float* y) {
  SHARED(float, row, [32]);
  copy_async<4>(&row[threadIdx.x], &x[threadIdx.x]);  // OTHER copy_not_waited
  commit_copies();
  wait_copies<1>();
  y[threadIdx.x] = row[threadIdx.x];  // BUG-CHECK copy_not_waited_for copy_not_waited
}

__global__ void barrier_in_a_branch(float* y) {
  if (threadIdx.x < 40) __syncthreads();  // BUG divergence barrier_in_a_branch
  y[threadIdx.x] = 1;
}

__global__ void two_barriers(float* y) {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();  // BUG divergence two_barriers
  y[threadIdx.x] = 1;
}

__global__ void shuffle_in_a_branch(float* y) {
  float v = threadIdx.x;
  if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffff, v, 1);  // BUG divergence shuffle_in_a_branch
  y[threadIdx.x] = v;
}

__global__ void half_a_mask(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(0xffff, 1.0f, 1);  // BUG warp_operation half_a_mask
}

__global__ void warps_at_two_barriers(float* y) {
  if (threadIdx.x < 32)
    __syncthreads();  // BUG deadlock warps_at_two_barriers
  else
    __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void spins(float* y) {
  volatile float* flag = y;
  if (threadIdx.x == 0)
    while (flag[1] != 2) {  // BUG deadlock spins
    }
  y[1] = 2;
}

__global__ void one_too_far(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x + 1];  // BUG out_of_bounds one_too_far
}

__global__ void before_the_start(const float* x, float* y) {
  y[static_cast<int>(threadIdx.x) - 1] = x[threadIdx.x];  // BUG out_of_bounds before_the_start
}

__global__ void a_row_too_many(float* y) {
  SHARED(float, tile, [2][32]);
  SHARED(float, other, [32]);
  other[threadIdx.x] = 0;
  tile[threadIdx.x / 16 + 1][threadIdx.x] = 1;  // BUG out_of_bounds a_row_too_many
  y[threadIdx.x] = other[threadIdx.x];
}

__global__ void past_a_shared_array(float* y) {
  SHARED(float, row, [32]);
  float* all = row;
  all[threadIdx.x + 1] = 1;  // BUG out_of_bounds past_a_shared_array
  y[threadIdx.x] = all[threadIdx.x + 1];
}

__global__ void misaligned(const float* x, float* y) {
  store_wide(y + 4 * threadIdx.x, load_wide<Vec<float, 4>>(x + 4 * threadIdx.x + 1));  // BUG misaligned misaligned
}

__global__ void too_much_shared(float* y) {
  SHARED(float, big, [64 * 1024]);  // BUG shared_memory too_much_shared
  big[threadIdx.x] = 0;
  y[threadIdx.x] = big[threadIdx.x];
}

__device__ __attribute__((noinline)) float element(const float* array, int i) {
  return array[i];  // BUG-ASAN stack-buffer-overflow past_a_local_array
}

__global__ void past_a_local_array(const float* x, float* y) {
  float mine[8];
  for (int i = 0; i < 8; i++) mine[i] = x[i];
  y[threadIdx.x] = element(mine, threadIdx.x % 9);
}

__global__ void an_index_of_32_bits(float* y) {
  int at = static_cast<int>(threadIdx.x) * (1 << 28);  // BUG-ASAN signed integer overflow an_index_of_32_bits
  y[threadIdx.x] = at;
}

__global__ void shifted_too_far(float* y) {
  y[threadIdx.x] = 1u << (threadIdx.x + 1);  // BUG-ASAN shift exponent shifted_too_far
}

// ---- correct kernels that resemble wrong ones: nothing may be reported -------------------------

__global__ void right_barriers(const float* x, float* y) {
  SHARED(float, row, [64]);
  for (int i = 0; i < 2; i++) {
    row[threadIdx.x] = x[threadIdx.x] + i;
    __syncthreads();
    y[threadIdx.x] = row[threadIdx.x ^ 32];
    __syncthreads();
  }
}

__global__ void right_syncwarp(const float* x, float* y) {
  SHARED(float, row, [64]);
  row[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = row[threadIdx.x ^ 1];
  __syncwarp();
  row[threadIdx.x ^ 3] = 1;
}

__global__ void right_sharing(const float* x, float* y) { y[blockIdx.x * 64 + threadIdx.x] = x[0]; }

__global__ void right_local_arrays(const float* x, float* y) {
  float mine[8];
  for (int i = 0; i < 8; i++) mine[i] = x[i] + threadIdx.x;
  __syncthreads();  // another thread's stack runs now
  float sum = 0;
  for (int i = 0; i < 8; i++) sum += __shfl_xor_sync(0xffffffff, mine[i], 1 + i);
  __syncthreads();
  y[blockIdx.x * 64 + threadIdx.x] = sum + mine[threadIdx.x % 8];
}

__global__ void right_early_return(float* y) {
  if (threadIdx.x >= 32) return;
  float v = __shfl_xor_sync(0xffffffff, 1.0f, 1);
  y[threadIdx.x] = v;
}

#define ONE(kernel, blocks, threads) \
  extern "C" void run_##kernel(const float* x, float* y) { (void)x; LAUNCH(kernel, blocks, threads, 0, 0, x, y); }
#define OUT(kernel, blocks, threads) \
  extern "C" void run_##kernel(const float* x, float* y) { (void)x; LAUNCH(kernel, blocks, threads, 0, 0, y); }

ONE(no_barrier, 1, 64)
ONE(no_second_barrier, 1, 64)
ONE(no_syncwarp, 1, 32)
ONE(two_blocks_one_place, 2, 64)
OUT(blocks_read_and_write, 2, 32)
OUT(uninitialised, 1, 64)
OUT(left_by_the_block_before, 2, 32)
ONE(copy_not_waited, 1, 32)
OUT(barrier_in_a_branch, 1, 64)
OUT(two_barriers, 1, 64)
OUT(shuffle_in_a_branch, 1, 32)
OUT(half_a_mask, 1, 32)
OUT(warps_at_two_barriers, 1, 64)
OUT(spins, 1, 32)
ONE(one_too_far, 4, 64)
ONE(before_the_start, 1, 64)
OUT(a_row_too_many, 1, 32)
OUT(past_a_shared_array, 1, 32)
ONE(misaligned, 1, 32)
OUT(too_much_shared, 1, 64)
ONE(past_a_local_array, 1, 32)
OUT(an_index_of_32_bits, 1, 32)
OUT(shifted_too_far, 1, 32)
ONE(right_barriers, 1, 64)
ONE(right_syncwarp, 1, 64)
ONE(right_sharing, 4, 64)
ONE(right_local_arrays, 2, 64)
OUT(right_early_return, 1, 64)
