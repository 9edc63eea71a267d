// CUDA's own words, each used once: nvcc compiles this file, and the simulator runs it.

#include "dialect.h"

__global__ void shuffles(const int* x, int* y, int distance, int width) {
  int lane = threadIdx.x, value = x[lane];
  y[lane] = __shfl_down_sync(0xffffffff, value, distance, width);
  y[32 + lane] = __shfl_up_sync(0xffffffff, value, distance, width);
  y[64 + lane] = __shfl_xor_sync(0xffffffff, value, distance, width);
  y[96 + lane] = __shfl_sync(0xffffffff, value, distance, width);
}

// A warp's sum by halving, then sent to all lanes.
__global__ void down_and_back(const float* x, float* y) {
  float sum = x[threadIdx.x];
  for (int step = warpSize / 2; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
  y[threadIdx.x] = __shfl_sync(0xffffffff, sum, 0);
}

__global__ void four_at_once(const float* __restrict__ x, float* y) {
  SHARED(float4, tile, [32]);
  tile[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
  __syncthreads();
  float4 other = tile[31 - threadIdx.x];
  reinterpret_cast<float4*>(y)[threadIdx.x] = make_float4(other.w, other.z, other.y, other.x);
}

__global__ void four_unaligned(const float* x, float* y) {
  float4 four = *reinterpret_cast<const float4*>(x + threadIdx.x + 1);
  y[threadIdx.x] = four.x;
}

__global__ void pairs(const int* x, int* y) {
  int2 two = __ldg(reinterpret_cast<const int2*>(x) + threadIdx.x);
  reinterpret_cast<int2*>(y)[threadIdx.x] = make_int2(two.y, two.x);
}

__global__ void arithmetic(const float* x, float* y) {
  if (threadIdx.x) return;
  float a = __ldg(x + threadIdx.x), b = 0.5f;
  y[0] = fmaxf(a, b), y[1] = fminf(a, b), y[2] = max(a, b), y[3] = min(a, b);
  y[4] = min(7, 9u), y[5] = max(-1, 3), y[6] = __fadd_rn(a, b), y[7] = __fmul_rn(a, b);
  y[8] = __fmaf_rn(a, b, a), y[9] = __fdiv_rn(a, b), y[10] = __fsqrt_rn(a), y[11] = fabsf(-a);
  y[12] = __popc(0xF0u), y[13] = __clz(1), y[14] = __ffs(8), y[15] = __int_as_float(__float_as_int(a));
  y[16] = max(NAN, b), y[17] = fmaf(a, b, b);
  // A GPU approximates these; the last bits may differ.
  y[18] = rsqrtf(a), y[19] = __expf(a), y[20] = expf(a), y[21] = __logf(a), y[22] = __fdividef(a, b), y[23] = exp2f(a);
}

extern "C" {
void run_shuffles(const int* x, int* y, int distance, int width) { LAUNCH(shuffles, 1, 32, 0, 0, x, y, distance, width); }
void run_down_and_back(const float* x, float* y) { LAUNCH(down_and_back, 1, 32, 0, 0, x, y); }
void run_four_at_once(const float* x, float* y) { LAUNCH(four_at_once, 1, 32, 0, 0, x, y); }
void run_four_unaligned(const float* x, float* y) { LAUNCH(four_unaligned, 1, 32, 0, 0, x, y); }
void run_pairs(const int* x, int* y) { LAUNCH(pairs, 1, 32, 0, 0, x, y); }
void run_arithmetic(const float* x, float* y) { LAUNCH(arithmetic, 1, 32, 0, 0, x, y); }
}
