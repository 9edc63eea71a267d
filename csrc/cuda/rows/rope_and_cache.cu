// rope_and_cache: rotates q and k by their positions, and writes k and v into the sequence's slots of the cache.
//
//     one block per token     heads of q  -> q_out   rotated
//                             heads of k  -> k_cache[slot]   rotated
//                             heads of v  -> v_cache[slot]   unchanged
//
// Component i of a head is paired with component i + rotary_dim / 2; the pair is rotated by the angle of
// (position, i). Components from rotary_dim on are copied: all of them, if rotary_dim is 0. The two steps are fused:
// each of q, k and v is read once and written once. Two kernels would read k and v twice. A token with a negative slot
// only fills up a batch (model/pass.h): nothing is written to the cache. Limit: memory. Source: Su et al., arXiv
// 2104.09864, in Llama's layout.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__device__ __forceinline__ void rotate(const T* from, T* to, const float* cos, const float* sin, int heads, int half,
                                       int head_dim) {
  for (int i = threadIdx.x; i < heads * half; i += kThreads) {
    int head = i / half, pair = i % half, at = head * head_dim + pair;
    float a = to_float(from[at]), b = to_float(from[at + half]), c = cos[pair], s = sin[pair];
    to[at] = from_float<T>(a * c - b * s);
    to[at + half] = from_float<T>(b * c + a * s);
  }
  int kept = head_dim - 2 * half;
  for (int i = threadIdx.x; i < heads * kept; i += kThreads) {
    int at = i / kept * head_dim + 2 * half + i % kept;
    to[at] = from[at];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rope_and_cache_kernel(const __grid_constant__ RopeArgs p) {
  int64_t token = blockIdx.x, slot = p.slots[token];
  int half = p.rotary_dim / 2, q_size = p.num_heads * p.head_dim, kv_size = p.num_kv_heads * p.head_dim;
  const float* cos = p.cos + p.positions[token] * half;
  const float* sin = p.sin + p.positions[token] * half;

  rotate(static_cast<const T*>(p.q) + token * p.q_stride, static_cast<T*>(p.q_out) + token * q_size, cos, sin,
         p.num_heads, half, p.head_dim);
  if (slot < 0) return;
  rotate(static_cast<const T*>(p.k) + token * p.k_stride, static_cast<T*>(p.k_cache) + slot * kv_size, cos, sin,
         p.num_kv_heads, half, p.head_dim);
  const T* v = static_cast<const T*>(p.v) + token * p.v_stride;
  T* v_slot = static_cast<T*>(p.v_cache) + slot * kv_size;
  for (int i = threadIdx.x; i < kv_size; i += kThreads) v_slot[i] = v[i];
}

}  // namespace

void rope_and_cache(const RopeArgs& p, Stream stream) {
  if (p.num_tokens == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(rope_and_cache_kernel<T>, p.num_tokens, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
