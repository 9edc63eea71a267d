// One bug per kernel with the words of sm_90; the comments are those of bugs.cu. WRONG: no error in `fast`, but NaN
// in the result.

#include "dialect_hopper.h"

// One thread makes an mbarrier for `count` arrivals that copies may use.
__device__ __forceinline__ void make(Mbarrier& bar, unsigned count) {
  if (threadIdx.x == 0) {
    mbarrier_init(bar, count);
    fence_mbarrier_init();
  }
  __syncthreads();
}

// ---- mbarriers --------------------------------------------------------------------------------------

__global__ void used_before_init(float* y) {
  SHARED(Mbarrier, bar, [2]);
  make(bar[0], 1);
  mbarrier_arrive(bar[1]);  // BUG mbarrier used_before_init
  y[threadIdx.x] = 1;
}

__global__ void made_again(float* y) {
  SHARED(Mbarrier, bar, [1]);
  make(bar[0], 1);
  if (threadIdx.x == 0) mbarrier_init(bar[0], 1);  // BUG mbarrier made_again
  y[threadIdx.x] = 1;
}

__global__ void count_of_none(float* y) {
  SHARED(Mbarrier, bar, [1]);
  if (threadIdx.x == 0) mbarrier_init(bar[0], 0);  // BUG mbarrier count_of_none
  y[threadIdx.x] = 1;
}

__global__ void not_in_shared_memory(float* y) {
  if (threadIdx.x == 0) mbarrier_init(*reinterpret_cast<Mbarrier*>(y), 1);  // BUG mbarrier not_in_shared_memory
}

__global__ void at_four_bytes(float* y) {
  SHARED(float, words, [4]);
  if (threadIdx.x == 0) mbarrier_init(*reinterpret_cast<Mbarrier*>(words + 1), 1);  // BUG misaligned at_four_bytes
  y[threadIdx.x] = 1;
}

__global__ void one_arrival_too_many(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) mbarrier_arrive_expect(full[0], 128);
  __syncwarp();
  if (threadIdx.x == 1) mbarrier_arrive(full[0]);  // BUG mbarrier one_arrival_too_many
  if (threadIdx.x == 0) bulk_copy(row, x, 128, full[0]);
  mbarrier_wait(full[0], 0);
  y[threadIdx.x] = row[threadIdx.x];
}

__global__ void too_many_bytes_expected(float* y) {
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) mbarrier_arrive_expect(full[0], 1 << 20);  // BUG mbarrier too_many_bytes_expected
  y[threadIdx.x] = 1;
}

__global__ void fewer_bytes_expected(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full[0], 64);
    bulk_copy(row, x, 128, full[0]);  // BUG mbarrier fewer_bytes_expected
  }
  mbarrier_wait(full[0], 0);
  y[threadIdx.x] = row[threadIdx.x];
}

__global__ void more_bytes_expected(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full[0], 256);
    bulk_copy(row, x, 128, full[0]);
  }
  mbarrier_wait(full[0], 0);  // BUG deadlock more_bytes_expected
  y[threadIdx.x] = row[threadIdx.x];
}

__global__ void an_arrival_is_missing(float* y) {
  SHARED(Mbarrier, bar, [1]);
  make(bar[0], 32);
  if (threadIdx.x != 7) mbarrier_arrive(bar[0]);
  mbarrier_wait(bar[0], 0);  // BUG deadlock an_arrival_is_missing
  y[threadIdx.x] = 1;
}

__global__ void waits_for_the_phase_after(float* y) {
  SHARED(Mbarrier, bar, [1]);
  make(bar[0], 32);
  mbarrier_arrive(bar[0]);
  mbarrier_wait(bar[0], 0);
  mbarrier_wait(bar[0], 1);  // BUG deadlock waits_for_the_phase_after
  y[threadIdx.x] = 1;
}

__global__ void parity_of_two(float* y) {
  SHARED(Mbarrier, bar, [1]);
  make(bar[0], 32);
  mbarrier_wait(bar[0], 2);  // BUG mbarrier parity_of_two
  y[threadIdx.x] = 1;
}

__global__ void no_barrier_after_init(float* y) {
  SHARED(Mbarrier, bar, [1]);
  if (threadIdx.x == 0) mbarrier_init(bar[0], 64);  // OTHER no_barrier_after_init
  mbarrier_arrive(bar[0]);  // BUG-CHECK race no_barrier_after_init
  y[threadIdx.x] = 1;
}

__global__ void arrives_before_it_writes(const float* x, float* y) {
  SHARED(float, row, [64]);
  SHARED(Mbarrier, written, [1]);
  make(written[0], 64);
  mbarrier_arrive(written[0]);
  row[threadIdx.x] = x[threadIdx.x];  // OTHER arrives_before_it_writes
  mbarrier_wait(written[0], 0);
  y[threadIdx.x] = row[threadIdx.x ^ 32];  // BUG-CHECK race arrives_before_it_writes
}

// ---- bulk copies ------------------------------------------------------------------------------------

__global__ void bulk_not_waited(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full[0], 128);
    bulk_copy(row, x, 128, full[0]);  // OTHER bulk_not_waited
  }
  __syncthreads();
  y[threadIdx.x] = row[threadIdx.x];  // BUG-CHECK copy_not_waited_for bulk_not_waited
  mbarrier_wait(full[0], 0);
}

__global__ void waits_with_the_wrong_parity(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full[0], 128);
    bulk_copy(row, x, 128, full[0]);  // OTHER waits_with_the_wrong_parity
  }
  mbarrier_wait(full[0], 1);
  y[threadIdx.x] = row[threadIdx.x];  // BUG-CHECK copy_not_waited_for waits_with_the_wrong_parity
  mbarrier_wait(full[0], 0);
}

__global__ void only_one_warp_waits(const float* x, float* y) {
  SHARED(float, row, [64]);
  SHARED(Mbarrier, full, [2]);
  make(full[0], 1);
  make(full[1], 32);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full[0], 256);
    bulk_copy(row, x, 256, full[0]);  // OTHER only_one_warp_waits
  }
  if (threadIdx.x < 32) {
    mbarrier_arrive(full[1]);  // too early: this warp has not waited yet
    mbarrier_wait(full[0], 0);
  } else {
    mbarrier_wait(full[1], 0);
    for (int i = 0; i < 8; i++) __syncwarp();
  }
  y[threadIdx.x] = row[threadIdx.x];  // BUG-CHECK copy_not_waited_for only_one_warp_waits
}

__global__ void the_block_ends_first(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) bulk_copy(row, x, 128, full[0]);  // BUG copy_not_waited_for the_block_ends_first
  y[threadIdx.x] = 1;
}

__global__ void bulk_from_eight_bytes(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) bulk_copy(row, x + 2, 64, full[0]);  // BUG misaligned bulk_from_eight_bytes
  y[threadIdx.x] = 1;
}

__global__ void bulk_of_24_bytes(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) bulk_copy(row, x, 24, full[0]);  // BUG copy bulk_of_24_bytes
  y[threadIdx.x] = 1;
}

__global__ void bulk_past_the_array(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) bulk_copy(row, x, 256, full[0]);  // BUG out_of_bounds bulk_past_the_array
  y[threadIdx.x] = 1;
}

__global__ void bulk_past_the_tensor(const float* x, float* y) {
  SHARED(float, row, [64]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  if (threadIdx.x == 0) bulk_copy(row, x + 32, 256, full[0]);  // BUG out_of_bounds bulk_past_the_tensor
  y[threadIdx.x] = 1;
}

__global__ void copies_do_not_see_the_mbarrier(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  if (threadIdx.x == 0) {
    mbarrier_init(full[0], 1);  // OTHER copies_do_not_see_the_mbarrier
    bulk_copy(row, x, 128, full[0]);  // BUG no_proxy_fence copies_do_not_see_the_mbarrier
  }
  y[threadIdx.x] = 1;
}

__global__ void freed_before_it_is_read(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  SHARED(Mbarrier, empty, [1]);
  make(full[0], 1);
  make(empty[0], 32);
  for (int i = 0; i < 2; i++) {
    if (threadIdx.x == 0) {
      mbarrier_wait(empty[0], (i & 1) ^ 1);
      mbarrier_arrive_expect(full[0], 128);
      bulk_copy(row, x + 32 * i, 128, full[0]);  // BUG-CHECK race freed_before_it_is_read
    } else if (threadIdx.x >= 32) {
      mbarrier_wait(full[0], i);
      mbarrier_arrive(empty[0]);
      y[32 * i + threadIdx.x] = row[threadIdx.x - 32];  // OTHER freed_before_it_is_read
    }
  }
}

__global__ void written_before_the_copy(const float* x, float* y) {
  SHARED(float, row, [32]);
  SHARED(Mbarrier, full, [1]);
  make(full[0], 1);
  row[threadIdx.x] = 0;  // OTHER written_before_the_copy
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full[0], 128);
    bulk_copy(row, x, 128, full[0]);  // BUG-CHECK no_proxy_fence written_before_the_copy
  }
  mbarrier_wait(full[0], 0);
  y[threadIdx.x] = row[threadIdx.x];
}

// ---- wgmma ------------------------------------------------------------------------------------------

using Tile = bfloat16[64 * 64];

__device__ __forceinline__ MatrixDescriptor describe(const Tile& tile) { return matrix_descriptor(tile, 128, 256, Swizzle::none); }

// Ones.
__device__ __forceinline__ void fill(Tile& tile) {
  for (int i = threadIdx.x; i < 64 * 64; i += blockDim.x) tile[i] = from_float<bfloat16>(1);
}

__global__ void no_register_fence(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  float c[8][4] = {};
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // BUG wgmma no_register_fence
  wgmma_commit();
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void wgmma_not_committed(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  float c[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // BUG wgmma_not_waited_for wgmma_not_committed
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void results_land_late(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  float c[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));
  wgmma_commit();
  wgmma_wait<1>(c);
  y[threadIdx.x] = c[0][0];  // WRONG results_land_late
  wgmma_wait<0>(c);
}

__global__ void another_accumulator_is_named(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  float c[8][4] = {}, d[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));
  wgmma_commit();
  wgmma_wait<0>(d);  // BUG wgmma another_accumulator_is_named
  y[threadIdx.x] = c[0][0];
}

__global__ void one_warp_stays_away(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  float c[8][4] = {};
  wgmma_fence(c);
  if (threadIdx.x >= 32) wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // BUG deadlock one_warp_stays_away
  wgmma_commit();
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void half_a_warpgroup(float* y) {
  SHARED(Tile, tile, [1]);
  float c[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // BUG warpgroup half_a_warpgroup
  wgmma_commit();
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void tensor_cores_do_not_see_it(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  __syncthreads();
  float c[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // BUG-CHECK no_proxy_fence tensor_cores_do_not_see_it
  wgmma_commit();
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void operand_not_written(float* y) {
  SHARED(Tile, tile, [1]);
  float c[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // BUG-CHECK uninitialised operand_not_written
  wgmma_commit();
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void operand_of_another_warp(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);  // OTHER operand_of_another_warp
  fence_proxy_async();
  float c[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // BUG-CHECK race operand_of_another_warp
  wgmma_commit();
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void written_under_the_wgmma(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  float c[8][4] = {};
  wgmma_fence(c);
  wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // OTHER written_under_the_wgmma
  wgmma_commit();
  tile[0][threadIdx.x] = from_float<bfloat16>(0);  // BUG-CHECK wgmma_not_waited_for written_under_the_wgmma
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void written_before_the_others_know(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x < 128) {
    float c[8][4] = {};
    wgmma_fence(c);
    wgmma<bfloat16>(c, describe(tile[0]), describe(tile[0]));  // OTHER written_before_the_others_know
    wgmma_commit();
    wgmma_wait<0>(c);
    y[threadIdx.x] = c[0][0];
  } else {
    tile[0][threadIdx.x] = from_float<bfloat16>(1);  // BUG-CHECK race written_before_the_others_know
  }
}

__global__ void pattern_begins_between(float* y) {
  SHARED(Tile, tile, [1]);
  fill(tile[0]);
  fence_proxy_async();
  __syncthreads();
  float c[8][4] = {};
  wgmma_fence(c);
  int off = 256 + (1024 - shared_address(tile[0]) % 1024) % 1024;
  MatrixDescriptor matrix = matrix_descriptor(tile[0] + off / 2, 0, 1024, Swizzle::bytes128);
  wgmma<bfloat16>(c, matrix, matrix);  // BUG wgmma pattern_begins_between
  wgmma_commit();
  wgmma_wait<0>(c);
  y[threadIdx.x] = c[0][0];
}

__global__ void one_warpgroup_changes_registers(float* y) {
  if (threadIdx.x < 64) lower_registers<24>();  // BUG deadlock one_warpgroup_changes_registers
  y[threadIdx.x] = 1;
}

#define ONE(kernel, threads) \
  extern "C" void run_##kernel(const float* x, float* y) { LAUNCH(kernel, 1, threads, 0, 0, x, y); }
#define OUT(kernel, threads) \
  extern "C" void run_##kernel(const float* x, float* y) { (void)x; LAUNCH(kernel, 1, threads, 0, 0, y); }

OUT(used_before_init, 32)
OUT(made_again, 32)
OUT(count_of_none, 32)
OUT(not_in_shared_memory, 32)
OUT(at_four_bytes, 32)
ONE(one_arrival_too_many, 32)
OUT(too_many_bytes_expected, 32)
ONE(fewer_bytes_expected, 32)
ONE(more_bytes_expected, 32)
OUT(an_arrival_is_missing, 32)
OUT(waits_for_the_phase_after, 32)
OUT(parity_of_two, 32)
OUT(no_barrier_after_init, 64)
ONE(arrives_before_it_writes, 64)
ONE(bulk_not_waited, 32)
ONE(waits_with_the_wrong_parity, 32)
ONE(only_one_warp_waits, 64)
ONE(the_block_ends_first, 32)
ONE(bulk_from_eight_bytes, 32)
ONE(bulk_of_24_bytes, 32)
ONE(bulk_past_the_array, 32)
ONE(bulk_past_the_tensor, 32)
ONE(copies_do_not_see_the_mbarrier, 32)
ONE(freed_before_it_is_read, 64)
ONE(written_before_the_copy, 32)
OUT(no_register_fence, 128)
OUT(wgmma_not_committed, 128)
OUT(results_land_late, 128)
OUT(another_accumulator_is_named, 128)
OUT(one_warp_stays_away, 128)
OUT(half_a_warpgroup, 64)
OUT(tensor_cores_do_not_see_it, 128)
OUT(operand_not_written, 128)
OUT(operand_of_another_warp, 128)
OUT(written_under_the_wgmma, 128)
OUT(written_before_the_others_know, 160)
OUT(pattern_begins_between, 128)
OUT(one_warpgroup_changes_registers, 128)
