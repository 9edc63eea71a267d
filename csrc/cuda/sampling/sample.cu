// sample: from logits to a token, one block per row (rules and reasons: minillm/ops/sampling.py).
//
//     mask, penalty -> highest -> (x - highest) / temperature -> top-k -> top-p -> min-p -> + noise -> argmax
//
// Nothing is sorted. Each id has a *rank*, an integer. Its upper bits are those of the id's value, mapped so
// that integers have the order of the floats. Its lower bits are the id reversed, so that of two equal values
// the lower id ranks higher. No two ranks are equal. Both filters are the same search: the highest rank t such
// that the ids with rank >= t have enough total weight.
//
//     top-k    weight of an id: 1          enough: k
//     top-p    weight of an id: e^x        enough: top_p times the total weight of the ids that top-k kept
//
// t is found bit by bit from the top, as in a radix select with one bit per pass. Bytes: a pass reads the row
// (mostly from L2); each filter in use takes 32 + log2(vocab) passes. Limit: the latency of these passes; a
// select by 8 bits at a time would need an eighth of them.
//
// Noise is a function of (key, id) only, so rows are independent (contract C3). Float64 is used where the
// reference uses it: for sums of probabilities and for the final argmax.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// A candidate for the argmax. The higher score is better; of equal scores, the lower id.
struct Best {
  double score;
  int id;
};

__device__ __forceinline__ Best better(Best a, Best b) {
  return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

// The best candidate of the block, returned in every thread. All threads of the block must call it.
__device__ __forceinline__ Best block_best(Best best) {
  SHARED(double, scores, [kWarps]);
  SHARED(int, ids, [kWarps]);
  for (int step = 16; step > 0; step /= 2)
    best = better(best, {__shfl_xor_sync(0xffffffff, best.score, step), __shfl_xor_sync(0xffffffff, best.id, step)});
  __syncthreads();  // the previous call's results have been read
  if (threadIdx.x % 32 == 0) scores[threadIdx.x / 32] = best.score, ids[threadIdx.x / 32] = best.id;
  __syncthreads();
  for (int warp = 0; warp < kWarps; warp++) best = better(best, {scores[warp], ids[warp]});
  return best;
}

__device__ __forceinline__ double block_sum(double value) {
  SHARED(double, sums, [kWarps]);
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kWarps; warp++) sum += sums[warp];
  return sum;
}

struct Row {
  const float* values;  // [count], in global memory
  int count, id_bits;
};

// The rank of `id`. For the order of floats, all bits of a negative value are flipped; of a positive one, only
// the sign bit.
__device__ __forceinline__ uint64_t rank_of(const Row& row, int id) {
  union {
    float value;
    uint32_t bits;
  } x = {row.values[id] + 0.0f};  // -0 becomes +0: the two are equal
  uint32_t ordered = x.bits & 0x80000000u ? ~x.bits : x.bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << row.id_bits | ((1u << row.id_bits) - 1 - id);
}

// The total weight of the ids with rank >= `lowest`.
template <class Weight>
__device__ __forceinline__ double weigh(const Row& row, uint64_t lowest, Weight weight) {
  double sum = 0;
  for (int id = threadIdx.x; id < row.count; id += kThreads)
    if (rank_of(row, id) >= lowest) sum += weight(id);
  return block_sum(sum);
}

// The highest rank t such that the ids with rank >= t have a total weight of `enough`; 0 if all ids have less.
template <class Weight>
__device__ __forceinline__ uint64_t threshold(const Row& row, double enough, Weight weight) {
  uint64_t lowest = 0;
  for (int bit = 31 + row.id_bits; bit >= 0; bit--) {
    uint64_t candidate = lowest | uint64_t{1} << bit;
    if (weigh(row, candidate, weight) >= enough) lowest = candidate;
  }
  return lowest;
}

// A Gumbel variable from SplitMix64's finaliser of key and id.
__device__ __forceinline__ double gumbel(uint64_t key, int id) {
  uint64_t x = key + (static_cast<uint64_t>(id) + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  double uniform = (static_cast<double>((x ^ (x >> 31)) >> 12) + 0.5) * 0x1p-52;
  return -log(-log(uniform));
}

__device__ __forceinline__ float moderate(double divisor) {
  return static_cast<float>(min(max(divisor, 1e-20), 1e20));
}

// Writes the row's logits as floats, after the repetition penalty.
template <class T>
__device__ __forceinline__ void read_logits(const SampleArgs& p, float* values, int row, double penalty) {
  const T* logits = static_cast<const T*>(p.logits) + static_cast<int64_t>(row) * p.vocab_size;
  for (int id = threadIdx.x; id < p.num_token_ids; id += kThreads) values[id] = to_float(logits[id]);
  __syncthreads();
  float factor = moderate(penalty);
  int64_t begin = row ? p.seen_end[row - 1] : 0, end = p.seen_end[row];
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {  // each id occurs once: no two threads share a value
    int64_t id = p.seen[i];
    if (id < p.num_token_ids) values[id] = values[id] > 0 ? values[id] / factor : values[id] * factor;
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs p) {
  int row_number = blockIdx.x;
  float* values = static_cast<float*>(p.scratch) + static_cast<int64_t>(row_number) * p.num_token_ids;
  if (p.finite && !p.finite[row_number]) {
    if (threadIdx.x == 0) p.tokens[row_number] = 0;
    return;
  }
  const double* numbers = p.numbers + 4 * row_number;
  double temperature = numbers[0], top_p = numbers[1], min_p = numbers[2];
  int64_t top_k = p.top_k[row_number];
  read_logits<T>(p, values, row_number, numbers[3]);

  Best likeliest = {-INFINITY, p.num_token_ids};
  for (int id = threadIdx.x; id < p.num_token_ids; id += kThreads) likeliest = better(likeliest, {values[id], id});
  likeliest = block_best(likeliest);
  if (temperature == 0) {
    if (threadIdx.x == 0) p.tokens[row_number] = likeliest.id;
    return;  // the whole block returns: all its threads have the same temperature
  }

  float highest = static_cast<float>(likeliest.score), divisor = moderate(temperature);
  for (int id = threadIdx.x; id < p.num_token_ids; id += kThreads) values[id] = (values[id] - highest) / divisor;

  Row row = {values, p.num_token_ids, p.id_bits};
  uint64_t lowest = 0;  // from here on, a thread reads only values that it wrote itself
  if (top_k > 0) lowest = threshold(row, static_cast<double>(top_k), [](int) { return 1.0; });
  if (top_p < 1) {
    uint64_t kept = lowest;
    auto mass = [&](int id) { return rank_of(row, id) >= kept ? exp(static_cast<double>(values[id])) : 0.0; };
    uint64_t nucleus = threshold(row, top_p * weigh(row, kept, mass), mass);
    lowest = max(kept, nucleus);
  }
  float least = min_p > 0 ? static_cast<float>(log(min_p)) : -INFINITY;  // min_p times the highest weight, e^0

  Best drawn = {-INFINITY, p.num_token_ids};
  for (int id = threadIdx.x; id < p.num_token_ids; id += kThreads) {
    float value = values[id];
    bool out = value == -INFINITY || value < least || rank_of(row, id) < lowest;
    if (!out) drawn = better(drawn, {value + gumbel(p.keys[row_number], id), id});
  }
  drawn = block_best(drawn);
  if (threadIdx.x == 0) p.tokens[row_number] = drawn.id;
}

}  // namespace

int64_t sample_scratch_bytes(int rows, int num_token_ids) { return int64_t{4} * rows * num_token_ids; }

void sample(const SampleArgs& given, Stream stream) {
  if (given.rows == 0) return;
  SampleArgs p = given;
  p.id_bits = 1;
  while (1 << p.id_bits < p.num_token_ids) p.id_bits++;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(sample_kernel<T>, p.rows, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
