// The rules of rungs.h.

#include "rungs.h"

namespace minillm::cuda {
namespace {

// So many rows of a tile of linear_l3 are filled that it is faster than linear_l2.
constexpr int kRowsForRegisterTiles = 64;

// Decode has one row for each sequence, a verification a few: their keys are split over blocks. A prompt has rows
// enough to keep every multiprocessor busy.
constexpr int kMostRowsInSplits = 8;

// Parts of very many rows and splits would take too much memory; attention_v3 needs none.
constexpr int64_t kMostSplitBytes = int64_t{256} << 20;

// The longest sequence is not known here; none is longer than the block table is wide.
int most_splits(const AttentionArgs& p) { return num_splits(p.sequences.max_blocks * p.block_size); }

// Numbers of the parts' softmax: two a row and split, filled up so that what follows begins at a multiple of 16 bytes.
int64_t softmax_numbers(const AttentionArgs& p) {
  const int64_t rows = int64_t{p.sequences.num_tokens} * p.num_heads;
  return (2 * most_splits(p) * rows + 3) / 4 * 4;
}

}  // namespace

bool can_use_tensor_cores(const LinearArgs& p) { return p.dtype != DType::f32 && p.in % 8 == 0 && p.in < 1 << 24; }

bool can_use_tensor_cores(const AttentionArgs& p) {
  return p.dtype != DType::f32 && (p.head_dim == 64 || p.head_dim == 128) && p.softcap == 0 && !p.sinks &&
         p.codes == KvCodes::none;
}

void look_up(const GatherArgs& p, Stream stream) {
  (p.form.codes == Codes::none ? gather : gather_codes)(p, stream);
}

void rotate_and_write(const RopeArgs& p, Stream stream) {
  (p.codes == KvCodes::none ? rope_and_cache : rope_and_codes)(p, stream);
}

void linear(const LinearArgs& p, bool tensor_cores, Stream stream) {
  if (p.form.codes != Codes::none) return linear_q1(p, stream);
  if (tensor_cores && can_use_tensor_cores(p))
    linear_l5(p, stream);
  else
    (p.rows <= kRowsForRegisterTiles ? linear_l2 : linear_l3)(p, stream);
}

void experts(const ExpertLinearArgs& p, bool tensor_cores, Stream stream) {
  if (p.form.codes != Codes::none) return linear_q1_experts(p, stream);
  (tensor_cores && can_use_tensor_cores(p) ? linear_l5_experts : linear_experts)(p, stream);
}

int64_t split_bytes(const AttentionArgs& p) {
  const int64_t rows = int64_t{p.sequences.num_tokens} * p.num_heads;
  return 4 * (softmax_numbers(p) + most_splits(p) * rows * p.head_dim);
}

void attention_in_splits(const AttentionArgs& p, void* memory, Stream stream) {
  float* softmax = static_cast<float*>(memory);
  decode_d3(p, {softmax, softmax + softmax_numbers(p), most_splits(p)}, stream);
}

int64_t attention_bytes(const AttentionArgs& p, bool tensor_cores) {
  const Sequences& s = p.sequences;
  if (!tensor_cores || !can_use_tensor_cores(p)) return 0;
  if (s.num_tokens > int64_t{kMostRowsInSplits} * s.num_seqs) return 0;
  const int64_t bytes = split_bytes(p);
  return bytes <= kMostSplitBytes ? bytes : 0;
}

void attention(const AttentionArgs& p, void* memory, bool tensor_cores, Stream stream) {
  if (p.codes != KvCodes::none) return attention_q1(p, stream);
  if (attention_bytes(p, tensor_cores))
    attention_in_splits(p, memory, stream);
  else if (tensor_cores && can_use_tensor_cores(p))
    attention_v3(p, stream);
  else
    (p.sequences.num_tokens == p.sequences.num_seqs ? decode_d1 : attention_v2)(p, stream);
}

}  // namespace minillm::cuda
