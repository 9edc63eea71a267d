// group: sorts the (token, expert) pairs of a layer by expert, on the GPU; one block per expert.
//
//     chosen   token 0: 1 3    token 1: 3 4    token 2: 1 3       the experts of each token, two per token
//     order    [ 0 2 | 0 1 2 | 1 ]                                the tokens of expert 1, of 3, of 4
//     starts     0 0 2 2 5 6                                      expert e has rows starts[e] to starts[e + 1]
//     place    token 0: 0 2    token 1: 3 5    token 2: 1 4       the row of each pair
//
// The host need not know how many rows an expert has, so a layer has no wait, and a graph can repeat it. The sort is
// stable and needs no atomics: block e counts the pairs of lower experts (its start) and those of its own. Each thread
// looks at consecutive pairs and learns from a sum over the threads before it where its first row goes.
//
// A pair whose expert does not exist belongs to one more block, the last: it comes after all others, and its place
// is -1. Bytes: each block reads 8 per pair, twice, the second time from the first cache; 16 are written per pair.
// Limit: latency; for 4,096 pairs two rounds of 16 loads per thread. Source: counting sort, as in the radix sort of
// Merrill & Grimshaw (2011). Left out: one pass over the pairs for all experts; 128 blocks together read 4 MB here.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__device__ __forceinline__ int block_of(const GroupArgs& p, int pair) {
  int64_t expert = p.chosen[pair];
  return expert < 0 || expert >= p.num_experts ? p.num_experts : static_cast<int>(expert);
}

__global__ void __launch_bounds__(kThreads) group_kernel(const __grid_constant__ GroupArgs p) {
  SHARED(int, lower, [kWarps]);  // pairs of lower experts, and of this one, that each warp has seen
  SHARED(int, equal, [kWarps]);
  int expert = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int each = (p.pairs + kThreads - 1) / kThreads, first = threadIdx.x * each, last = min(first + each, p.pairs);
  int below = 0, mine = 0;
  for (int pair = first; pair < last; pair++) {
    int other = block_of(p, pair);
    below += other < expert;
    mine += other == expert;
  }
  int up_to_me = mine;
  for (int step = 1; step < 32; step *= 2) {
    below += __shfl_xor_sync(0xffffffff, below, step);
    int before = __shfl_up_sync(0xffffffff, up_to_me, step);
    if (lane >= step) up_to_me += before;
  }
  if (lane == 31) {
    lower[warp] = below;
    equal[warp] = up_to_me;
  }
  __syncthreads();  // the sums of all warps are written

  int start = 0, row = up_to_me - mine;
  for (int w = 0; w < kWarps; w++) {
    start += lower[w];
    if (w < warp) row += equal[w];
  }
  if (threadIdx.x == 0) p.starts[expert] = start;
  row += start;
  for (int pair = first; pair < last; pair++) {
    if (block_of(p, pair) != expert) continue;
    p.order[row] = pair / p.per_token;
    p.place[pair] = expert < p.num_experts ? row : -1;
    row++;
  }
}

}  // namespace

void group(const GroupArgs& p, Stream stream) {
  LAUNCH(group_kernel, p.num_experts + 1, kThreads, 0, stream_of(stream), p);
}

}  // namespace minillm::cuda
