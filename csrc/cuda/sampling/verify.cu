// verify_coupled, verify_draft: which drafted tokens are accepted (rules and reasons: minillm/ops/verification.py).
//
// Coupled: one warp walks the tree of one request. Its lanes compare 32 nodes at once and find the first child
// that equals the token sampled from the target. The walk goes on at that child. Only integers, a few hundred
// bytes.
//
// Rejection: one block per request. Lane i tests drafted token i; the first refused token ends the accepted run.
// Then one token is drawn from weights w = p or max(p - q, 0) by inverting the running sum. The running sum is
// never stored: each warp sums one part of the ids, and the part in which the sum exceeds u * total is divided
// again in the next round.
//
//     ids     0 ........................................ 151935     32 warps, 4748 ids each
//     sums    [ .03 | .05 | .02 | .04 | ...                   ]     u * total = .12
//                               '--.--'                             exceeded in the fourth part
//             [ ........................ ]  149 ids per warp        then 5, then 1: the token
//
// Bytes: p and q of one row once, a 32nd of them again, and so on: 8 * vocab * 33 / 32. Limit: the loads of one
// SM, since a request is one block; more requests use more SMs. Sums are float64, in an order that depends only
// on the vocabulary size, so a draw does not depend on the other requests. An id of weight 0 is never drawn:
// each round takes a part whose sum is above 0.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kMinWarps = 4, kMaxWarps = 32;

__device__ __forceinline__ int warp_least(int value) {
  for (int step = 16; step > 0; step /= 2) value = min(value, __shfl_xor_sync(0xffffffff, value, step));
  return value;
}

// ---- coupled ----------------------------------------------------------------------------------

// The first child of node `at` whose drafted token equals the token sampled at `at`; `end` if there is none.
__device__ __forceinline__ int matching_child(const CoupledArgs& p, int begin, int end, int at) {
  int64_t drawn = p.sampled[at];
  int found = end;
  for (int first = at + 1; first < end && found == end; first += 32) {
    int node = first + threadIdx.x;
    bool fits = node < end && p.parents[node] == at - begin && p.drafted[node] == drawn;
    found = warp_least(fits ? node : end);
  }
  return found;
}

__global__ void __launch_bounds__(32) verify_coupled_kernel(const __grid_constant__ CoupledArgs p) {
  int begin = static_cast<int>(p.node_start[blockIdx.x]), end = static_cast<int>(p.node_start[blockIdx.x + 1]);
  int to = begin;
  for (int at = begin; at < end; at = matching_child(p, begin, end, at), to++) {
    if (threadIdx.x != 0) continue;
    p.tokens[to] = p.sampled[at];
    p.nodes[to] = at - begin;
  }
  for (int rest = to + threadIdx.x; rest < end; rest += 32) p.tokens[rest] = p.nodes[rest] = -1;
}

// ---- rejection --------------------------------------------------------------------------------

__device__ __forceinline__ bool stands(const DraftArgs& p, int64_t request, int i) {
  int64_t id = p.draft[request * p.k + i];
  if (id < 0) return false;
  double target = p.target_probs[(request * (p.k + 1) + i) * p.vocab_size + id];
  double drafted = p.draft_probs ? p.draft_probs[(request * p.k + i) * p.vocab_size + id] : 1.0;
  return p.uniforms[request * (p.k + 1) + i] * drafted < target;
}

// The number of drafted tokens before the first refused one. Each warp computes it by itself.
__device__ __forceinline__ int count_standing(const DraftArgs& p, int64_t request) {
  int fallen = p.k;
  for (int first = 0; first < p.k && fallen == p.k; first += 32) {
    int i = first + threadIdx.x % 32;
    fallen = warp_least(i < p.k && !stands(p, request, i) ? i : p.k);
  }
  return fallen;
}

// The weight of an id: p, or max(p - q, 0). The draft's q is a row of probabilities, or 1 at a single id.
struct Weights {
  const float *target, *draft;  // draft: null if there is no row of q
  int certain;                  // the id whose q is 1, or -1

  __device__ __forceinline__ double operator()(int id) const {
    double q = draft ? static_cast<double>(draft[id]) : id == certain ? 1.0 : 0.0;
    return max(static_cast<double>(target[id]) - q, 0.0);
  }
};

// sums[warp]: the total weight of that warp's part of the ids from `begin` on. All threads of the block must call
// it, and all can read `sums` afterwards.
__device__ __forceinline__ void weigh_parts(const Weights& weights, int begin, int end, int part_size, double* sums) {
  int warp = threadIdx.x / 32, from = begin + warp * part_size, to = min(from + part_size, end);
  double sum = 0;
  for (int id = from + threadIdx.x % 32; id < to; id += 32) sum += weights(id);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  __syncthreads();  // the previous sums have been read
  if (threadIdx.x % 32 == 0) sums[warp] = sum;
  __syncthreads();
}

// The first part at which the running sum exceeds `threshold`. If rounding keeps the sum below it: the last part
// with a sum above 0. -1 if there is no such part. `running` becomes the sum before the returned part.
__device__ __forceinline__ int passed_part(const double* sums, int parts, double threshold, double& running) {
  int passed = -1;
  double before = running;
  for (int part = 0; part < parts; part++) {
    if (!(sums[part] > 0)) continue;
    passed = part;
    running = before;
    before += sums[part];
    if (before > threshold) break;
  }
  return passed;
}

__device__ __forceinline__ int64_t draw(Weights weights, int vocab_size, double uniform) {
  SHARED(double, sums, [kMaxWarps]);
  int warps = blockDim.x / 32, begin = 0, end = vocab_size, part_size = (vocab_size + warps - 1) / warps;
  auto weigh_all = [&] {
    weigh_parts(weights, begin, end, part_size, sums);
    double total = 0;
    for (int warp = 0; warp < warps; warp++) total += sums[warp];
    return total;
  };
  double total = weigh_all();
  if (!(total > 0)) {  // p equals q up to rounding, so max(p - q, 0) is 0 everywhere: draw from p
    weights.draft = nullptr, weights.certain = -1;
    total = weigh_all();
  }
  double running = 0;
  for (;;) {
    int part = passed_part(sums, warps, uniform * total, running);
    if (part < 0) return -1;  // the whole block returns: all threads have read the same sums
    begin += part * part_size;
    end = min(begin + part_size, end);
    if (part_size == 1) return begin;
    part_size = (part_size + warps - 1) / warps;
    weigh_parts(weights, begin, end, part_size, sums);
  }
}

__global__ void __launch_bounds__(32 * kMaxWarps) verify_draft_kernel(const __grid_constant__ DraftArgs p) {
  int64_t request = blockIdx.x;
  const int64_t* draft = p.draft + request * p.k;
  int standing = count_standing(p, request);
  bool fell = standing < p.k && draft[standing] >= 0;
  Weights weights = {p.target_probs + (request * (p.k + 1) + standing) * p.vocab_size, nullptr, -1};
  if (fell && p.draft_probs) weights.draft = p.draft_probs + (request * p.k + standing) * p.vocab_size;
  if (fell && !p.draft_probs) weights.certain = static_cast<int>(draft[standing]);
  int64_t drawn = draw(weights, p.vocab_size, p.uniforms[request * (p.k + 1) + p.k]);
  for (int i = threadIdx.x; i <= p.k; i += blockDim.x)
    p.tokens[request * (p.k + 1) + i] = i < standing ? draft[i] : i == standing ? drawn : -1;
  if (threadIdx.x == 0) p.accepted[request] = standing;
}

}  // namespace

void verify_coupled(const CoupledArgs& p, Stream stream) {
  if (p.requests == 0) return;
  LAUNCH(verify_coupled_kernel, p.requests, 32, 0, stream_of(stream), p);
}

void verify_draft(const DraftArgs& p, Stream stream) {
  if (p.requests == 0) return;
  int warps = max(kMinWarps, min(ceil_div(p.vocab_size, 32), kMaxWarps));  // a small vocabulary needs fewer warps
  LAUNCH(verify_draft_kernel, p.requests, 32 * warps, 0, stream_of(stream), p);
}

}  // namespace minillm::cuda
