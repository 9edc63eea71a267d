// Right kernels with the words of sm_90, one or two words each.

#include "dialect_hopper.h"

// ---- bulk copies and mbarriers --------------------------------------------------------------------

// y = x backwards, through shared memory: one copy, one mbarrier.
__global__ void bulk_reverse(const float* x, float* y) {
  SHARED(float, row, [64]);
  SHARED(Mbarrier, full, [1]);
  if (threadIdx.x == 0) {
    mbarrier_init(full[0], 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(full[0], 256);
    bulk_copy(row, x, 256, full[0]);
  }
  __syncthreads();
  mbarrier_wait(full[0], 0);
  y[threadIdx.x] = row[63 - threadIdx.x];
}

// y [n] = the sums of the rows of x [n, 32]: warp 0 copies, warps 1 and 2 add up, two rows under way.
__global__ void ring_sums(const float* x, float* y, int n) {
  SHARED(float, row, [2][32]);
  SHARED(Mbarrier, full, [2]);
  SHARED(Mbarrier, empty, [2]);
  int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) mbarrier_init(full[i], 1), mbarrier_init(empty[i], 2);
    fence_mbarrier_init();
  }
  __syncthreads();
  for (int i = 0; i < n; i++) {
    int stage = i % 2, parity = i / 2 % 2;
    if (threadIdx.x == 0) {
      mbarrier_wait(empty[stage], parity ^ 1);
      mbarrier_arrive_expect(full[stage], 128);
      bulk_copy(row[stage], x + 32 * i, 128, full[stage]);
    } else if (threadIdx.x >= 32) {
      mbarrier_wait(full[stage], parity);
      float sum = row[stage][lane];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty[stage]);
      for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
      if (lane == 0 && threadIdx.x / 32 == 1u + stage) y[i] = sum;
    }
  }
}

// What one thread of each warp wrote is read by the other warp, after an mbarrier in place of __syncthreads.
__global__ void handed_over(const float* x, float* y) {
  SHARED(float, row, [64]);
  SHARED(Mbarrier, written, [1]);
  if (threadIdx.x == 0) mbarrier_init(written[0], 64);
  __syncthreads();
  row[threadIdx.x] = x[threadIdx.x];
  mbarrier_arrive(written[0]);
  mbarrier_wait(written[0], 0);
  y[threadIdx.x] = row[threadIdx.x ^ 32];
}

// y = the box of x as it lies in shared memory, `bytes` of it.
struct BoxArgs {
  TensorMap map;
  float* y;
  int at[4];
  int bytes;
};

template <int kRank>
__global__ void box(const __grid_constant__ BoxArgs p) {
  DYNAMIC_SHARED(float, tile);
  SHARED(Mbarrier, full, [1]);
  if (threadIdx.x == 0) {
    mbarrier_init(full[0], 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(full[0], p.bytes);
    int at[kRank];
    for (int d = 0; d < kRank; d++) at[d] = p.at[d];
    tensor_copy(tile, p.map, at, full[0]);
  }
  __syncthreads();
  mbarrier_wait(full[0], 0);
  for (int i = threadIdx.x; i < p.bytes / 4; i += 32) p.y[i] = tile[i];
}

// x [dims .., dims[0]], of `element_bytes`; the box begins at `at`.
extern "C" void run_box(const void* x, float* y, const int* dims, const int* box_dims, const int* at, int rank, int element_bytes,
                        int swizzle) {
  TensorShape shape = {x, element_bytes, rank, {}, {}, {}, static_cast<Swizzle>(swizzle)};
  BoxArgs p = {{}, y, {}, element_bytes};
  uint64_t stride = element_bytes;
  for (int d = 0; d < rank; d++) {
    shape.dims[d] = dims[d], shape.box[d] = box_dims[d], shape.strides[d] = stride;
    stride *= dims[d];
    p.at[d] = at[d];
    p.bytes *= box_dims[d];
  }
  p.map = make_tensor_map(shape);
  if (rank == 2) LAUNCH((box<2>), 1, 32, p.bytes, 0, p);
  if (rank == 3) LAUNCH((box<3>), 1, 32, p.bytes, 0, p);
  if (rank == 4) LAUNCH((box<4>), 1, 32, p.bytes, 0, p);
}

// ---- wgmma ------------------------------------------------------------------------------------------

constexpr int kDepth = 64;  // of the products below

// Where number k of row `row` of an operand of `rows` rows lies, in numbers from its beginning.
template <Swizzle kSwizzle, Major kMajor>
__device__ int place(int row, int k, int rows) {
  constexpr int kSpan = swizzle_span(kSwizzle) / 2, kChunks = kSpan / 8;
  int line = kMajor == Major::k ? row : k, along = kMajor == Major::k ? k : row;
  int lines = kMajor == Major::k ? rows : kDepth;
  int chunk = along % kSpan / 8, turn = line * kChunks / 8 % kChunks;
  return along / kSpan * lines * kSpan + line * kSpan + (chunk ^ turn) * 8 + along % 8;
}

template <Swizzle kSwizzle, Major kMajor>
__device__ MatrixDescriptor describe_step(const void* start, int step, int rows) {
  constexpr int kSpan = swizzle_span(kSwizzle);
  int lines = kMajor == Major::k ? rows : kDepth, block = lines * kSpan, eight_lines = 8 * kSpan;
  const char* from = static_cast<const char*>(start);
  if (kMajor == Major::mn) {  // 16 lines further on
    int leading = kSwizzle == Swizzle::none ? eight_lines : block, stride = kSwizzle == Swizzle::none ? block : eight_lines;
    return matrix_descriptor(from + step * 2 * eight_lines, leading, stride, kSwizzle);
  }
  int byte = step * 32;  // 16 numbers further along the line
  return matrix_descriptor(from + byte / kSpan * block + byte % kSpan, block, eight_lines, kSwizzle);
}

struct ProductArgs {
  const float *a, *b;  // [64, kDepth], [columns, kDepth]
  float* c;            // [64, columns]; the product is added
};

// c += a b^T with 16-bit numbers; a in registers or in shared memory.
template <class T, int kColumns, Swizzle kSwizzle, Major kMajor, bool kInRegisters>
__global__ void __launch_bounds__(128) product(const __grid_constant__ ProductArgs p) {
  DYNAMIC_SHARED(char, memory);
  T* a = reinterpret_cast<T*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  T* b = a + 64 * kDepth;
  for (int i = threadIdx.x; i < 64 * kDepth; i += 128)
    a[place<kSwizzle, kMajor>(i / kDepth, i % kDepth, 64)] = from_float<T>(p.a[i]);
  for (int i = threadIdx.x; i < kColumns * kDepth; i += 128)
    b[place<kSwizzle, kMajor>(i / kDepth, i % kDepth, kColumns)] = from_float<T>(p.b[i]);
  fence_proxy_async();
  __syncthreads();
  int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  float c[kColumns / 8][4];
  Vec<T, 8> mine[kDepth / 16];
  UNROLL
  for (int i = 0; i < kColumns / 2; i++)
    c[i / 4][i % 4] = p.c[(row + i % 4 / 2 * 8) * kColumns + i / 4 * 8 + column + i % 2];
  UNROLL
  for (int i = 0; i < kDepth / 2; i++)
    mine[i / 8].v[i % 8] = from_float<T>(p.a[(row + i % 4 / 2 * 8) * kDepth + i / 4 * 8 + column + i % 2]);
  wgmma_fence(c);
  UNROLL
  for (int step = 0; step < kDepth / 16; step++) {
    MatrixDescriptor b_step = describe_step<kSwizzle, kMajor>(b, step, kColumns);
    if constexpr (kInRegisters)
      wgmma<T, kMajor>(c, mine[step].v, b_step);
    else
      wgmma<T, kMajor, kMajor>(c, describe_step<kSwizzle, kMajor>(a, step, 64), b_step);
  }
  wgmma_commit();
  wgmma_wait<0>(c);
  UNROLL
  for (int i = 0; i < kColumns / 2; i++)
    p.c[(row + i % 4 / 2 * 8) * kColumns + i / 4 * 8 + column + i % 2] = c[i / 4][i % 4];
}

template <class T, int kColumns, Swizzle kSwizzle, Major kMajor>
void launch_product(const ProductArgs& p, bool in_registers) {
  constexpr int kBytes = 1024 + (64 + kColumns) * kDepth * 2;
  if (in_registers)
    LAUNCH((product<T, kColumns, kSwizzle, kMajor, true>), 1, 128, kBytes, 0, p);
  else
    LAUNCH((product<T, kColumns, kSwizzle, kMajor, false>), 1, 128, kBytes, 0, p);
}

template <class T, int kColumns>
void choose_product(const ProductArgs& p, int swizzle, bool mn, bool in_registers) {
  auto with = [&](auto s) {
    constexpr Swizzle kSwizzle = decltype(s)::value;
    mn ? launch_product<T, kColumns, kSwizzle, Major::mn>(p, in_registers)
       : launch_product<T, kColumns, kSwizzle, Major::k>(p, in_registers);
  };
  if (swizzle == 0) with(std::integral_constant<Swizzle, Swizzle::none>{});
  if (swizzle == 1) with(std::integral_constant<Swizzle, Swizzle::bytes32>{});
  if (swizzle == 2) with(std::integral_constant<Swizzle, Swizzle::bytes64>{});
  if (swizzle == 3) with(std::integral_constant<Swizzle, Swizzle::bytes128>{});
}

extern "C" void run_product_64(const float* a, const float* b, float* c, int is_bf16, int swizzle, int mn, int in_registers) {
  ProductArgs p = {a, b, c};
  if (is_bf16) return choose_product<bfloat16, 64>(p, swizzle, mn, in_registers);
  launch_product<float16, 64, Swizzle::bytes128, Major::k>(p, in_registers);
}

extern "C" void run_product_128(const float* a, const float* b, float* c) {
  launch_product<bfloat16, 128, Swizzle::bytes128, Major::mn>({a, b, c}, true);
}

// Two products under way: the first is read while the second is unfinished.
__global__ void __launch_bounds__(128) two_groups(const float* x, float* y) {
  DYNAMIC_SHARED(char, memory);
  bfloat16* tile = reinterpret_cast<bfloat16*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  for (int i = threadIdx.x; i < 64 * 64; i += 128) tile[i] = from_float<bfloat16>(x[i % 8]);  // the same in every piece
  fence_proxy_async();
  __syncthreads();
  float one[8][4] = {}, two[8][4] = {};
  MatrixDescriptor matrix = matrix_descriptor(tile, 0, 1024, Swizzle::bytes128);
  wgmma_fence(one, two);
  wgmma<bfloat16>(one, matrix, matrix);
  wgmma_commit();
  wgmma<bfloat16>(two, matrix, advanced(matrix, 32));
  wgmma<bfloat16>(two, advanced(matrix, 32), advanced(matrix, 32));
  wgmma_commit();
  wgmma_wait<1>(one);
  y[threadIdx.x] = one[0][0];
  wgmma_wait<0>(two);
  y[128 + threadIdx.x] = two[0][0];
}

// One warpgroup copies with few registers, the other has more.
__global__ void __launch_bounds__(256, 1) registers(float* y) {
  if (threadIdx.x < 128)
    lower_registers<24>();
  else
    raise_registers<240>();
  y[threadIdx.x] = 1;
}

extern "C" void run_bulk_reverse(const float* x, float* y) { LAUNCH(bulk_reverse, 1, 64, 0, 0, x, y); }
extern "C" void run_ring_sums(const float* x, float* y, int n) { LAUNCH(ring_sums, 1, 96, 0, 0, x, y, n); }
extern "C" void run_handed_over(const float* x, float* y) { LAUNCH(handed_over, 1, 64, 0, 0, x, y); }
extern "C" void run_two_groups(const float* x, float* y) { LAUNCH(two_groups, 1, 128, 1024 + 8192, 0, x, y); }
extern "C" void run_registers(float* y) { LAUNCH(registers, 1, 256, 0, 0, y); }
