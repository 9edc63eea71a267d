// From logits to a token: minillm/ops/sampling.py in C++, row by row, each row from its own numbers only.
//
// Bytes: a row of logits, a few times over. FLOPs: without care two logarithms per id for the noise, a
// millisecond for 50,000 ids. Care: noise above g is rarer than e^-g, and the leading one-bits of the
// uniform bound it from above, so nearly every id is out of the race after one hash. What is left is
// computed exactly as in Python, so the draw is the same.
//
// Sorting is replaced by selection: only the ids that top-k or top-p can keep are put in order.

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace minillm {
namespace {

constexpr float kMinusInf = -__builtin_inff();

float widen(uint16_t bits, DType dtype) {
  if (dtype == DType::bf16) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    return __builtin_bit_cast(float, wide);
  }
  int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  float magnitude = exponent == 31  ? (mantissa ? __builtin_nanf("") : __builtin_inff())
                    : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                    : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Row `row` of logits as floats; ids from `valid` on, which the tokenizer lacks, are left out.
std::vector<float> read_row(const void* logits, DType dtype, int64_t row, int64_t vocab, int64_t valid) {
  std::vector<float> values(valid);
  if (dtype == DType::f32) {
    const float* from = static_cast<const float*>(logits) + row * vocab;
    std::copy(from, from + valid, values.begin());
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(logits) + row * vocab;
    for (int64_t i = 0; i < valid; i++) values[i] = widen(from[i], dtype);
  }
  return values;
}

// Most likely first; among equals the lowest id.
struct Likelier {
  const std::vector<float>& values;
  bool operator()(int64_t a, int64_t b) const { return values[a] != values[b] ? values[a] > values[b] : a < b; }
};

int64_t argmax(const std::vector<float>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

// The `count` likeliest ids, in order.
void order_first(std::vector<int64_t>& ids, int64_t count, const std::vector<float>& values) {
  Likelier likelier{values};
  if (count < static_cast<int64_t>(ids.size())) std::nth_element(ids.begin(), ids.begin() + count, ids.end(), likelier);
  std::sort(ids.begin(), ids.begin() + count, likelier);
}

std::vector<int64_t> all_ids(int64_t count) {
  std::vector<int64_t> ids(count);
  for (int64_t i = 0; i < count; i++) ids[i] = i;
  return ids;
}

// The fewest of the likeliest ids whose probability reaches top_p; `scaled`'s maximum is 0.
void keep_nucleus(std::vector<int64_t>& ids, const std::vector<float>& scaled, double top_p) {
  double total = 0;
  for (int64_t id : ids) total += std::exp(static_cast<double>(scaled[id]));
  int64_t size = ids.size(), kept = 0;
  double enough = top_p * total, before = 0;
  for (int64_t ordered = 64; before < enough && kept < size; ordered *= 8) {
    order_first(ids, std::min(ordered, size), scaled);
    for (kept = 0, before = 0; kept < std::min(ordered, size) && before < enough; kept++)
      before += std::exp(static_cast<double>(scaled[ids[kept]]));
  }
  ids.resize(kept);
}

// ---- noise ------------------------------------------------------------------------------------

// SplitMix64's finaliser over key and id: the upper 52 bits are the uniform.
uint64_t uniform_bits(uint64_t key, int64_t id) {
  uint64_t x = key + (static_cast<uint64_t>(id) + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return (x ^ (x >> 31)) >> 12;
}

double gumbel(uint64_t bits) {
  double uniform = (static_cast<double>(bits) + 0.5) * 0x1p-52;
  return -std::log(-std::log(uniform));
}

// At least gumbel(bits): -log u >= 1 - u, and 1 - u >= 2^-k for k counted in bits.
double gumbel_bound(uint64_t bits) {
  uint64_t rest = 0xfffffffffffffu - bits;
  int exponent = rest ? 63 - __builtin_clzll(rest) : -1;
  return (52 - exponent) * 0.6931471806 + 1e-9;
}

// The id with the highest score plus noise: a draw from the softmax of the scores.
class Race {
 public:
  Race(const std::vector<float>& scaled, uint64_t key, int64_t favourite) : scaled_(scaled), key_(key), best_id_(favourite) {
    best_ = scaled[favourite] + gumbel(uniform_bits(key, favourite));
  }
  void enter(int64_t id) {
    uint64_t bits = uniform_bits(key_, id);
    if (scaled_[id] + gumbel_bound(bits) < best_) return;
    double score = scaled_[id] + gumbel(bits);
    if (score > best_ || (score == best_ && id < best_id_)) best_ = score, best_id_ = id;
  }
  int64_t winner() const { return best_id_; }

 private:
  const std::vector<float>& scaled_;
  uint64_t key_;
  int64_t best_id_;
  double best_;
};

// ---- one row ----------------------------------------------------------------------------------

float moderate(double divisor) { return static_cast<float>(std::min(std::max(divisor, 1e-20), 1e20)); }

void penalise(std::vector<float>& values, const int64_t* seen, const int64_t* end, float penalty) {
  for (; seen < end; seen++) {
    if (*seen >= static_cast<int64_t>(values.size())) continue;
    float& value = values[*seen];
    value = value > 0 ? value / penalty : value * penalty;
  }
}

int64_t draw(std::vector<float>& values, uint64_t key, double temperature, double top_p, double min_p, int64_t top_k) {
  int64_t favourite = argmax(values), valid = values.size();
  float highest = values[favourite], divisor = moderate(temperature);
  for (float& value : values) value = (value - highest) / divisor;
  Race race(values, key, favourite);
  float lowest = min_p > 0 ? static_cast<float>(std::log(min_p)) : kMinusInf;  // min_p of the highest, e^0
  auto survives = [&](int64_t id) { return values[id] >= lowest; };
  if (!top_k && top_p >= 1) {
    for (int64_t id = 0; id < valid; id++)
      if (values[id] > kMinusInf && survives(id)) race.enter(id);
    return race.winner();
  }
  std::vector<int64_t> ids = all_ids(valid);
  if (top_k && top_k < valid) {
    order_first(ids, top_k, values);
    ids.resize(top_k);
  }
  if (top_p < 1) keep_nucleus(ids, values, top_p);
  for (int64_t id : ids)
    if (survives(id)) race.enter(id);
  return race.winner();
}

int64_t sample_row(const SampleArgs& a, int64_t row) {
  const double* n = a.numbers + 4 * row;
  int64_t seen_begin = row ? a.seen_end[row - 1] : 0;
  std::vector<float> values = read_row(a.logits, a.dtype, row, a.vocab, std::min(a.vocab, a.num_token_ids));
  if (n[3] != 1.0) penalise(values, a.seen + seen_begin, a.seen + a.seen_end[row], moderate(n[3]));
  if (n[0] <= 0) return argmax(values);
  return draw(values, static_cast<uint64_t>(a.keys[row]), n[0], n[1], n[2], a.top_k[row]);
}

void logprobs_row(const LogprobsArgs& a, int64_t row) {
  std::vector<float> values = read_row(a.logits, a.dtype, row, a.vocab, a.vocab);
  double highest = values[argmax(values)], sum = 0;
  for (float value : values) sum += std::exp(value - highest);
  double shift = highest + std::log(sum);
  a.of_token[row] = static_cast<float>(values[a.tokens[row]] - shift);
  if (!a.top) return;
  std::vector<int64_t> ids = all_ids(a.vocab);
  order_first(ids, a.top, values);
  for (int64_t i = 0; i < a.top; i++) {
    a.best_ids[row * a.top + i] = ids[i];
    a.best[row * a.top + i] = static_cast<float>(values[ids[i]] - shift);
  }
}

template <class Args, void (*Row)(const Args&, int64_t)>
void over_rows(const Args& args) {
  parallel_ranges(
      0, args.rows, 1,
      [](int64_t begin, int64_t end, void* context) {
        for (int64_t row = begin; row < end; row++) Row(*static_cast<const Args*>(context), row);
      },
      const_cast<Args*>(&args));
}

void store_sample(const SampleArgs& a, int64_t row) { a.tokens[row] = sample_row(a, row); }

}  // namespace

void sample(const SampleArgs& args) { over_rows<SampleArgs, store_sample>(args); }
void token_logprobs(const LogprobsArgs& args) { over_rows<LogprobsArgs, logprobs_row>(args); }

}  // namespace minillm
