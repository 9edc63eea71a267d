// Attention, rung 1: naive. Three kernels, one per step of the formula; each hands its result to the next one in
// global memory.
//
//     scores = mask(q K^T * scale)      one thread per (row, key): writes N x N floats
//     weights = exp(scores - max)       one warp per row: reads the scores twice, writes the weights once
//     out = weights V / sum             one thread per (row, column): reads the visible weights again
//
//     scores [num_heads, num_tokens, max_kv_len]      the matrix that rung 2 never writes
//
// Bytes: at least 4.5 floats of scores per (row, key) and head, since half of the pairs are masked. Each thread also
// fetches its own q, k and v: K and V are read once per visible pair. FLOPs: 4 * head_dim per visible pair. Limit:
// memory, by a wide margin. This rung is for teaching. The engine does not use it: its summation order differs from
// that of the other rungs.
// Predicted, H100: 7.37 ms for 1024 tokens (L1), 469 ms for 8192 tokens (L1).

#include "paging.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

// The sequence a row of the batch belongs to, and the keys the row sees.
struct Row {
  int sequence;
  KeyRange keys;
};

__device__ __forceinline__ Row find_row(const AttentionArgs& p, int token) {
  const Sequences& s = p.sequences;
  int sequence = 0;
  while (s.query_start[sequence + 1] <= token) sequence++;
  int start = s.query_start[sequence], q_len = s.query_start[sequence + 1] - start;
  return {sequence, visible_keys(token - start, q_len, s.kv_len[sequence], p.window)};
}

__device__ __forceinline__ int64_t score_row(const AttentionArgs& p, const NaiveScratch& scratch, int head, int token) {
  return (static_cast<int64_t>(head) * p.sequences.num_tokens + token) * scratch.max_kv_len;
}

// The vector of `key` in a cache, for the kv head that `head` reads.
template <class T>
__device__ __forceinline__ const T* cached(const AttentionArgs& p, const void* cache, int sequence, int key, int head) {
  int64_t slot = slot_of(p.sequences, sequence, key, p.block_size);
  int kv_head = head / (p.num_heads / p.num_kv_heads);
  return static_cast<const T*>(cache) + (slot * p.num_kv_heads + kv_head) * p.head_dim;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_v1_scores(const __grid_constant__ AttentionArgs p, const __grid_constant__ NaiveScratch scratch) {
  int key = blockIdx.z * kThreads + threadIdx.x, token = blockIdx.x, head = blockIdx.y;
  Row row = find_row(p, token);
  if (key >= p.sequences.kv_len[row.sequence]) return;
  float score = -INFINITY;
  if (key >= row.keys.first && key <= row.keys.last) {
    const T* q = static_cast<const T*>(p.q) + token * p.q_stride + head * p.head_dim;
    const T* k = cached<T>(p, p.k_cache, row.sequence, key, head);
    score = 0;
    for (int d = 0; d < p.head_dim; d++) score = fmaf(to_float(q[d]), to_float(k[d]), score);
    score *= p.scale;
  }
  scratch.scores[score_row(p, scratch, head, token) + key] = score;
}

__global__ void __launch_bounds__(32)
    attention_v1_softmax(const __grid_constant__ AttentionArgs p, const __grid_constant__ NaiveScratch scratch) {
  int token = blockIdx.x, head = blockIdx.y;
  int kv_len = p.sequences.kv_len[find_row(p, token).sequence];
  float* scores = scratch.scores + score_row(p, scratch, head, token);
  float largest = -INFINITY, sum = 0;
  for (int key = threadIdx.x; key < kv_len; key += 32) largest = fmaxf(largest, scores[key]);
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
  for (int key = threadIdx.x; key < kv_len; key += 32) {
    float weight = expf(scores[key] - largest);
    scores[key] = weight;
    sum += weight;
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (threadIdx.x == 0) scratch.sums[head * p.sequences.num_tokens + token] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_v1_output(const __grid_constant__ AttentionArgs p, const __grid_constant__ NaiveScratch scratch) {
  int column = blockIdx.z * kThreads + threadIdx.x, token = blockIdx.x, head = blockIdx.y;
  if (column >= p.head_dim) return;
  Row row = find_row(p, token);
  const float* weights = scratch.scores + score_row(p, scratch, head, token);
  float out = 0;
  for (int key = row.keys.first; key <= row.keys.last; key++)
    out = fmaf(weights[key], to_float(cached<T>(p, p.v_cache, row.sequence, key, head)[column]), out);
  if (row.keys.first <= row.keys.last) out /= scratch.sums[head * p.sequences.num_tokens + token];
  static_cast<T*>(p.out)[(static_cast<int64_t>(token) * p.num_heads + head) * p.head_dim + column] = from_float<T>(out);
}

}  // namespace

void attention_v1(const AttentionArgs& p, const NaiveScratch& scratch, Stream stream) {
  int tokens = p.sequences.num_tokens;
  if (tokens == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    cudaStream_t s = stream_of(stream);
    dim3 pairs(tokens, p.num_heads, ceil_div(scratch.max_kv_len, kThreads));  // grid.y and grid.z end at 65,535
    LAUNCH(attention_v1_scores<T>, pairs, kThreads, 0, s, p, scratch);
    LAUNCH(attention_v1_softmax, dim3(tokens, p.num_heads), 32, 0, s, p, scratch);
    dim3 outputs(tokens, p.num_heads, ceil_div(p.head_dim, kThreads));
    LAUNCH(attention_v1_output<T>, outputs, kThreads, 0, s, p, scratch);
  });
}

}  // namespace minillm::cuda
