// route: the experts of each token, and the weights of their outputs; one block per token.
//
//     logits   0.1  2.0  0.3  2.0      rank   how many experts go before it: a higher logit, or an equal one
//     rank       3    0    2    1             and a lower number; NaN is the highest
//     chosen         1         3       the `per_token` experts of the lowest ranks, in rising order
//
// A rank looks only at the token's own logits, and two experts never have the same one. So which experts a token
// gets, and their order, do not depend on the batch (contract C2). No sort is needed: each thread compares its
// expert with all others, in shared memory.
//
// The weights are a softmax over all experts, or over the chosen ones: then only those count in the sum. Every
// warp computes the same sum, in the same order.
//
// Bytes: the logits are read once, 12 bytes are written per chosen expert. FLOPs: num_experts^2 comparisons per
// token. Limit: the latency of two passes over shared memory. Source: Shazeer et al., arXiv 1701.06538.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ bool goes_before(float a, int a_number, float b, int b_number) {
  bool a_nan = a != a, b_nan = b != b;
  if (a_nan || b_nan) return a_nan && (!b_nan || a_number < b_number);
  return a > b || (a == b && a_number < b_number);
}

template <class T>
__global__ void __launch_bounds__(kThreads) route_kernel(const __grid_constant__ RouteArgs p) {
  DYNAMIC_SHARED(float, logits);  // [num_experts]
  int* ranks = reinterpret_cast<int*>(logits + p.num_experts);
  int64_t token = blockIdx.x;
  const T* row = static_cast<const T*>(p.logits) + token * p.num_experts;
  for (int e = threadIdx.x; e < p.num_experts; e += kThreads) logits[e] = to_float(row[e]);
  __syncthreads();  // the logits are written

  for (int e = threadIdx.x; e < p.num_experts; e += kThreads) {
    int rank = 0;
    for (int other = 0; other < p.num_experts; other++) rank += goes_before(logits[other], other, logits[e], e);
    ranks[e] = rank;
  }
  __syncthreads();  // the ranks are written

  float largest = -INFINITY, sum = 0;
  for (int e = threadIdx.x % 32; e < p.num_experts; e += 32) largest = fmaxf(largest, logits[e]);
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
  for (int e = threadIdx.x % 32; e < p.num_experts; e += 32)
    if (!p.renormalize || ranks[e] < p.per_token) sum += expf(logits[e] - largest);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);

  for (int e = threadIdx.x; e < p.num_experts; e += kThreads) {
    if (ranks[e] >= p.per_token) continue;
    int64_t place = token * p.per_token;
    for (int other = 0; other < e; other++) place += ranks[other] < p.per_token;
    p.chosen[place] = e;
    p.weights[place] = expf(logits[e] - largest) / sum;
  }
}

}  // namespace

void route(const RouteArgs& p, Stream stream) {
  if (p.rows == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(route_kernel<T>, p.rows, kThreads, p.num_experts * 8, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
