// Votes, masks of some lanes, named barriers: each used rightly, then one bug per kernel, marked as in bugs.cu.

#include "dialect.h"

// ---- results and counts -----------------------------------------------------------------------

// The lanes of `mask` vote and exchange; the others do nothing.
__global__ void vote(const int* x, unsigned* y, unsigned mask) {
  unsigned lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  y[lane] = __ballot_sync(mask, x[lane]);
  y[32 + lane] = __any_sync(mask, x[lane]);
  y[64 + lane] = __all_sync(mask, x[lane]);
  y[96 + lane] = __shfl_sync(mask, x[lane], __ffs(mask) - 1);
}

// Each group of `size` lanes adds its numbers. All groups of a warp are under way at once, in different loops.
__global__ void group_sums(const float* x, float* y, int size) {
  int lane = threadIdx.x, group = lane / size;
  unsigned mask = (size == 32 ? ~0u : (1u << size) - 1) << group * size;
  float sum = x[lane];
  for (int repeat = 0; repeat <= group; repeat++)
    for (int step = size / 2; step > 0; step /= 2) {
      float other = __shfl_xor_sync(mask, sum, step);
      if (repeat == group) sum += other;
    }
  y[lane] = sum;
}

// Even and odd lanes are two groups: lane i reads what lane (i + 2) % 32 wrote.
__global__ void by_parity(const float* x, float* y) {
  SHARED(float, row, [32]);
  unsigned lane = threadIdx.x, mask = lane % 2 ? 0xaaaaaaaau : 0x55555555u;
  for (int i = 0; i < 3; i++) {
    row[lane] = x[lane] + i;
    __syncwarp(mask);
    y[lane] = row[(lane + 2) % 32];
    __syncwarp(mask);
  }
}

// Warps 0 and 1 fill two buffers in turn, warps 2 and 3 read them: named barriers 1, 2 say full, 3, 4 empty.
__global__ void produce_and_consume(const float* x, float* y, int rounds) {
  SHARED(float, buffer, [2][64]);
  int i = threadIdx.x % 64;
  x += 64 * rounds * blockIdx.x, y += 64 * rounds * blockIdx.x;
  if (threadIdx.x < 64) {
    for (int round = 0; round < rounds; round++) {
      if (round >= 2) named_barrier_sync(3 + round % 2, 128);
      buffer[round % 2][i] = x[64 * round + i];
      named_barrier_arrive(1 + round % 2, 128);
    }
  } else {
    for (int round = 0; round < rounds; round++) {
      named_barrier_sync(1 + round % 2, 128);
      y[64 * round + i] = buffer[round % 2][63 - i];
      if (round + 2 < rounds) named_barrier_arrive(3 + round % 2, 128);
    }
  }
}

// Each pair of warps has a barrier of its own, and uses it again and again.
__global__ void pairs_of_warps(const float* x, float* y) {
  SHARED(float, row, [128]);
  int pair = threadIdx.x / 64;
  for (int i = 0; i < 2 + pair; i++) {
    row[threadIdx.x] = x[threadIdx.x] + i;
    named_barrier_sync(15 - pair, 64);
    y[threadIdx.x] = row[threadIdx.x ^ 32];
    named_barrier_sync(15 - pair, 64);
  }
}

// ---- bugs -------------------------------------------------------------------------------------

__global__ void not_in_its_mask(float* y) {
  if (threadIdx.x < 8) y[threadIdx.x] = __any_sync(0xf, 1);  // BUG warp_operation not_in_its_mask
}

__global__ void empty_mask(float* y) {
  __syncwarp(0);  // BUG warp_operation empty_mask
  y[threadIdx.x] = 1;
}

__global__ void reads_outside_the_mask(float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0xffff, 1.0f, 8);  // BUG warp_operation reads_outside_the_mask
}

__global__ void masks_differ(float* y) {
  __syncwarp(threadIdx.x < 16 ? 0x1ffffu : 0xffff0000u);  // BUG divergence masks_differ
  y[threadIdx.x] = 1;
}

__global__ void a_lane_has_returned(float* y) {
  if (threadIdx.x == 3) return;
  y[threadIdx.x] = __ballot_sync(0xffffffff, 1);  // BUG divergence a_lane_has_returned
}

__global__ void a_lane_waits_elsewhere(float* y) {
  if (threadIdx.x < 4) __syncwarp(0x1f);  // BUG divergence a_lane_waits_elsewhere
  __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void two_operations_in_one_line(float* y) {
  y[threadIdx.x] = threadIdx.x % 2 ? __any_sync(~0u, 1) : __all_sync(~0u, 1);  // BUG divergence two_operations_in_one_line
}

__global__ void barrier_zero(float* y) {
  named_barrier_sync(0, 64);  // BUG named_barrier barrier_zero
  y[threadIdx.x] = 1;
}

__global__ void barrier_sixteen(float* y) {
  named_barrier_arrive(16, 64);  // BUG named_barrier barrier_sixteen
  y[threadIdx.x] = 1;
}

__global__ void part_of_a_warp(float* y) {
  named_barrier_sync(1, 48);  // BUG named_barrier part_of_a_warp
  y[threadIdx.x] = 1;
}

__global__ void more_than_the_block(float* y) {
  named_barrier_sync(1, 96);  // BUG named_barrier more_than_the_block
  y[threadIdx.x] = 1;
}

__global__ void mixed_counts(float* y) {
  if (threadIdx.x < 32)
    named_barrier_arrive(1, 64);  // OTHER mixed_counts
  else
    named_barrier_sync(1, 32);  // BUG named_barrier mixed_counts
  y[threadIdx.x] = 1;
}

__global__ void comes_twice(float* y) {
  if (threadIdx.x < 32) {
    for (int i = 0; i < 2; i++) named_barrier_arrive(1, 64);  // BUG named_barrier comes_twice
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

__global__ void nobody_waits(float* y) {
  if (threadIdx.x < 32) named_barrier_arrive(3, 64);  // BUG named_barrier nobody_waits
  y[threadIdx.x] = 1;
}

__global__ void too_few_come(float* y) {
  named_barrier_sync(2, 96);  // BUG deadlock too_few_come
  y[threadIdx.x] = 1;
}

__global__ void half_a_warp_comes(float* y) {
  if (threadIdx.x < 48) named_barrier_sync(1, 64);  // BUG divergence half_a_warp_comes
  y[threadIdx.x] = 1;
}

__global__ void lanes_name_two_barriers(float* y) {
  named_barrier_sync(1 + threadIdx.x % 2, 32);  // BUG divergence lanes_name_two_barriers
  y[threadIdx.x] = 1;
}

// A __syncwarp orders its lanes, and no others.
__global__ void other_lanes_are_not_ordered(const float* x, float* y) {
  SHARED(float, row, [32]);
  row[threadIdx.x] = 0;
  __syncwarp();
  row[threadIdx.x] = x[threadIdx.x];  // OTHER other_lanes_are_not_ordered
  __syncwarp(threadIdx.x < 16 ? 0xffffu : 0xffff0000u);
  y[threadIdx.x] = row[threadIdx.x ^ 16];  // BUG-CHECK race other_lanes_are_not_ordered
}

// Many read, then one writes: a reader outside the mask may still be reading.
__global__ void a_reader_is_not_ordered(const float* x, float* y) {
  SHARED(float, value, [1]);
  if (threadIdx.x == 0) value[0] = x[0];
  __syncwarp();
  y[threadIdx.x] = value[0];  // OTHER a_reader_is_not_ordered
  if (threadIdx.x < 16) __syncwarp(0xffff);
  if (threadIdx.x == 0) value[0] = 1;  // BUG-CHECK race a_reader_is_not_ordered
}

__global__ void a_vote_orders_no_memory(const float* x, float* y) {
  SHARED(float, row, [32]);
  row[threadIdx.x] = x[threadIdx.x];  // OTHER a_vote_orders_no_memory
  int any = __any_sync(0xffffffff, 1);
  y[threadIdx.x] = any + row[threadIdx.x ^ 1];  // BUG-CHECK race a_vote_orders_no_memory
}

// Who arrives tells what it did, and learns nothing.
__global__ void an_arrival_learns_nothing(const float* x, float* y) {
  SHARED(float, row, [64]);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = x[threadIdx.x];  // OTHER an_arrival_learns_nothing
  if (threadIdx.x < 32)
    named_barrier_sync(1, 64);
  else
    named_barrier_arrive(1, 64);
  y[threadIdx.x] = row[threadIdx.x < 32 ? threadIdx.x : threadIdx.x - 32];  // BUG-CHECK race an_arrival_learns_nothing
}

// Warp 2 is not at the barrier of warps 0 and 1.
__global__ void a_third_warp_is_not_ordered(const float* x, float* y) {
  SHARED(float, row, [96]);
  row[threadIdx.x] = 0;
  __syncthreads();
  row[threadIdx.x] = x[threadIdx.x % 64];  // OTHER a_third_warp_is_not_ordered
  if (threadIdx.x < 64)
    named_barrier_sync(1, 64);
  else
    named_barrier_sync(2, 32);
  y[threadIdx.x] = row[(threadIdx.x + 64) % 96];  // BUG-CHECK race a_third_warp_is_not_ordered
}

// Two readers of two warps; the writer waits for the first of them only.
__global__ void waits_for_one_reader_of_two(const float* x, float* y) {
  SHARED(float, value, [1]);
  if (threadIdx.x == 0) value[0] = x[0];
  __syncthreads();
  y[threadIdx.x] = value[0];  // OTHER waits_for_one_reader_of_two
  if (threadIdx.x < 64) named_barrier_sync(1, 64);
  if (threadIdx.x == 0) value[0] = 1;  // BUG-CHECK race waits_for_one_reader_of_two
}

// ---- correct kernels that resemble wrong ones -------------------------------------------------

// What lane 0 knows through one mask it passes on through the next: 0 -> 1 -> 2.
__global__ void right_chain_of_masks(const float* x, float* y) {
  SHARED(float, row, [32]);
  int lane = threadIdx.x;
  row[lane] = x[lane];
  if (lane < 2) __syncwarp(0x3);
  if (lane == 1 || lane == 2) __syncwarp(0x6);
  y[lane] = lane == 2 ? row[0] : 0;
  if (lane == 1 || lane == 2) __syncwarp(0x6);
  if (lane < 2) __syncwarp(0x3);
  if (lane == 0) row[0] = 1;
}

// A __syncwarp before the first named barrier counts too: warp 1 learns of lane 5 from the whole of warp 0.
__global__ void right_order_before_the_first_barrier(const float* x, float* y) {
  SHARED(float, row, [32]);
  if (threadIdx.x < 32) {
    row[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    if (threadIdx.x == 0) row[5] = 2;
    __syncwarp();
    named_barrier_arrive(1, 64);
  } else {
    named_barrier_sync(1, 64);
    y[threadIdx.x] = row[threadIdx.x - 32];
  }
}

// Two warps read, both say so, the third writes.
__global__ void right_two_readers(const float* x, float* y) {
  SHARED(float, row, [32]);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 2) row[lane] = x[lane];
  __syncthreads();
  if (warp < 2) {
    y[threadIdx.x] = row[lane ^ 1];
    named_barrier_arrive(4, 96);
  } else {
    named_barrier_sync(4, 96);
    row[lane] = 0;
  }
}

// Whole warps wait at different lines for one barrier, as in PTX.
__global__ void right_two_lines(const float* x, float* y) {
  SHARED(float, row, [64]);
  row[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x < 32)
    named_barrier_sync(1, 64);
  else
    named_barrier_sync(1, 64);
  y[threadIdx.x] = row[threadIdx.x ^ 32];
}

extern "C" {
void run_vote(const int* x, unsigned* y, unsigned mask) { LAUNCH(vote, 1, 32, 0, 0, x, y, mask); }
void run_group_sums(const float* x, float* y, int size) { LAUNCH(group_sums, 1, 32, 0, 0, x, y, size); }
void run_produce_and_consume(const float* x, float* y, int rounds) {
  LAUNCH(produce_and_consume, 2, 128, 0, 0, x, y, rounds);
}
}
#define ONE(kernel, threads) \
  extern "C" void run_##kernel(const float* x, float* y) { LAUNCH(kernel, 1, threads, 0, 0, x, y); }
#define OUT(kernel, threads) \
  extern "C" void run_##kernel(const float* x, float* y) { (void)x; LAUNCH(kernel, 1, threads, 0, 0, y); }

ONE(by_parity, 32)
ONE(pairs_of_warps, 128)
OUT(not_in_its_mask, 32)
OUT(empty_mask, 32)
OUT(reads_outside_the_mask, 32)
OUT(masks_differ, 32)
OUT(a_lane_has_returned, 32)
OUT(a_lane_waits_elsewhere, 32)
OUT(two_operations_in_one_line, 32)
OUT(barrier_zero, 64)
OUT(barrier_sixteen, 64)
OUT(part_of_a_warp, 64)
OUT(more_than_the_block, 64)
OUT(mixed_counts, 64)
OUT(comes_twice, 64)
OUT(nobody_waits, 64)
OUT(too_few_come, 128)
OUT(half_a_warp_comes, 64)
OUT(lanes_name_two_barriers, 32)
ONE(other_lanes_are_not_ordered, 32)
ONE(a_reader_is_not_ordered, 32)
ONE(a_vote_orders_no_memory, 32)
ONE(an_arrival_learns_nothing, 64)
ONE(a_third_warp_is_not_ordered, 96)
ONE(waits_for_one_reader_of_two, 96)
ONE(right_chain_of_masks, 32)
ONE(right_order_before_the_first_barrier, 64)
ONE(right_two_readers, 96)
ONE(right_two_lines, 64)
