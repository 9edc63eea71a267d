// rope_and_codes: rope_and_cache for a cache in 8 bits (kv_codes.h).
//
//     one block per token     heads of q              -> q_out   rotated
//     a warp per head of k    rotated -> max |x| -> scale = max / 127 (fp8: 448) -> codes = x / scale -> k_cache[slot]
//     a warp per head of v                 the same, not rotated                                      -> v_cache[slot]
//
// A rotated key is rounded to the model's dtype before its scale is found, so the codes are those of what rope_and_cache
// would write. A lane computes its numbers twice, for the scale and for the codes: the second read comes from a cache.
// The largest |x| is found among the bits of floats. As whole numbers these are in the same order, and those of infinity
// and NaN are larger than any finite number's, so one maximum also says whether the row is finite.
//
// Bytes: head_dim + 4 written for each head of k and v. Limit: memory. Source: as rope_and_cache.

#include "kv_codes.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kInfinity = 0x7F800000;  // its bits

// Component i of a head, rotated if it is one of the first 2 * half, and rounded.
template <class T>
__device__ __forceinline__ T turned(const T* head, int i, int half, const float* cos, const float* sin) {
  if (i >= 2 * half) return head[i];
  int pair = i < half ? i : i - half;
  float a = to_float(head[pair]), b = to_float(head[pair + half]), c = cos[pair], s = sin[pair];
  return from_float<T>(i < half ? a * c - b * s : b * c + a * s);
}

// Writes the row of a head, by one warp. `number_at` gives its numbers, `page` is where its head begins.
template <class NumberAt>
__device__ __forceinline__ void write_row(const RopeArgs& p, char* page, const KvPage& at, int64_t inside,
                                          NumberAt number_at) {
  int lane = threadIdx.x % 32, highest = 0;
  for (int i = lane; i < p.head_dim; i += 32) highest = max(highest, __float_as_int(fabsf(number_at(i))));
  for (int step = 16; step > 0; step /= 2) highest = max(highest, __shfl_xor_sync(0xffffffff, highest, step));
  float scale = highest < kInfinity ? __int_as_float(highest) / largest(p.codes) : NAN;
  uint32_t* words = reinterpret_cast<uint32_t*>(page + at.row(inside));
  for (int w = lane; w < p.head_dim / kWordCodes; w += 32) {
    uint32_t word = 0;
    UNROLL
    for (int j = 0; j < kWordCodes; j++)
      if (scale > 0) word |= code_of(p.codes, number_at(w * kWordCodes + j) / scale) << 8 * j;
    words[w] = word;
  }
  if (lane == 0) *reinterpret_cast<float*>(page + at.scale(inside)) = scale;
}

template <class T>
__global__ void __launch_bounds__(kThreads) rope_and_codes_kernel(const __grid_constant__ RopeArgs p) {
  int64_t token = blockIdx.x, slot = p.slots[token];
  int half = p.rotary_dim / 2, dim = p.head_dim, q_size = p.num_heads * dim;
  const float* cos = p.cos + p.positions[token] * half;
  const float* sin = p.sin + p.positions[token] * half;

  const T* q = static_cast<const T*>(p.q) + token * p.q_stride;
  T* q_out = static_cast<T*>(p.q_out) + token * q_size;
  for (int i = threadIdx.x; i < q_size; i += kThreads) q_out[i] = turned(q + i / dim * dim, i % dim, half, cos, sin);
  if (slot < 0) return;

  const KvPage at = {p.num_kv_heads, p.block_size, dim};
  int64_t block = slot / p.block_size, inside = slot % p.block_size;
  for (int row = threadIdx.x / 32; row < 2 * p.num_kv_heads; row += kThreads / 32) {
    bool is_key = row < p.num_kv_heads;
    int head = is_key ? row : row - p.num_kv_heads;
    const T* from = is_key ? static_cast<const T*>(p.k) + token * p.k_stride : static_cast<const T*>(p.v) + token * p.v_stride;
    char* cache = static_cast<char*>(is_key ? p.k_cache : p.v_cache);
    write_row(p, cache + at.head(block, head), at, inside, [&](int i) {
      return to_float(turned(from + head * dim, i, is_key ? half : 0, cos, sin));
    });
  }
}

}  // namespace

void rope_and_codes(const RopeArgs& p, Stream stream) {
  if (p.num_tokens == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(rope_and_codes_kernel<T>, p.num_tokens, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
