// Shared by all attention kernels: which keys a row sees, and where they lie in the cache.
//
//     keys     0 1 2 3 4 5 6 7        q_len 3, kv_len 8: the new rows are the sequence's last, so the
//     row 0    x x x x x x . .        mask is aligned bottom-right: row r sees keys up to
//     row 1    x x x x x x x .        r + kv_len - q_len; with a window of 4, only the last four of
//     row 2    . . . . x x x x        those (shown for row 2)
//
// A row is summed over its keys in tiles of kKeyTile, which begin at multiples of kKeyTile *in the sequence*.
// The order of the sums does not depend on which rows share a block, on how a prompt was cut into chunks, or
// on where the pages lie. So prefill and decode give a token the same bits (contract C2).

#pragma once

#include "dispatch.h"

namespace minillm::cuda {

constexpr int kKeyTile = 32;

// The keys of one row: first..last, both inclusive.
struct KeyRange {
  int first, last;
};

__device__ __forceinline__ KeyRange visible_keys(int row_in_sequence, int q_len, int kv_len, int window) {
  int last = row_in_sequence + kv_len - q_len;
  return {window > 0 ? max(0, last - window + 1) : 0, last};
}

// The slot that holds `key`: its row in the cache viewed as [num_blocks * block_size, num_kv_heads, head_dim].
__device__ __forceinline__ int64_t slot_of(const Sequences& s, int sequence, int key, int block_size) {
  int64_t block = s.block_table[static_cast<int64_t>(sequence) * s.max_blocks + key / block_size];
  return block * block_size + key % block_size;
}

// Online softmax: the state of a row after the keys seen so far. `max` is the largest score and `sum` the sum
// of exp(score - max). The output so far is relative to the same max and is divided by `sum` only at the end.
// Source: Milakov & Gimelshein, arXiv 1805.02867.
struct Softmax {
  float max, sum;
};

// The result of one column: the weighted sum over the sum of the weights, or 0 for a row that sees no key.
__device__ __forceinline__ float finished(float out, const Softmax& s, const KeyRange& keys) {
  return keys.last < keys.first ? 0.0f : out / s.sum;
}

// What the tensor-core rungs multiply by instead; likewise 0 for a row that sees no key.
__device__ __forceinline__ float inverse_sum(const Softmax& s, const KeyRange& keys) {
  return keys.last < keys.first ? 0.0f : 1.0f / s.sum;
}

// Raises the maximum to at least `tile_max`. Returns the factor by which all earlier sums must be multiplied;
// `sum` is multiplied here, the output by the caller.
__device__ __forceinline__ float raise_max(Softmax& s, float tile_max) {
  float before = s.max;
  s.max = fmaxf(before, tile_max);
  float factor = expf(before - s.max);
  s.sum *= factor;
  return factor;
}

// What a family adds to a score: 0 <= |s| < cap, and nearly s where s is small. Source: Gemma 2, arXiv 2408.00118.
__device__ __forceinline__ float cap_score(float score, float cap) { return cap > 0 ? cap * tanhf(score / cap) : score; }

// The state of a row before its first key. A sink is one more score of each row, without a value: a head can so
// attend to nothing. Source: gpt-oss, arXiv 2508.10925.
template <class T, bool kVariant>
__device__ __forceinline__ Softmax first_state(const AttentionArgs& p, int head) {
  if (!kVariant || !p.sinks) return {-INFINITY, 0.0f};
  float sink = to_float(static_cast<const T*>(p.sinks)[head]);
  return {sink, sink < INFINITY ? 1.0f : NAN};  // an infinite sink is a damaged weight
}

}  // namespace minillm::cuda
