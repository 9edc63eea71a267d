// From logits to a token: minillm/ops/sampling.py in C++. A row's result depends only on that row.
//
// Bytes: a row of logits, a few times. FLOPs: the noise naively takes two logarithms per id, a millisecond for 50,000
// ids. A bound avoids most of them: the leading one-bits of an id's uniform number bound its noise from above, and
// large noise is rare (noise above g has a probability below e^-g). So nearly every id is excluded after one hash. The
// noise of the other ids is computed exactly as in Python, so the drawn token is the same.
//
// Selection replaces sorting: only the ids that top-k or top-p can keep are sorted.

#include <algorithm>
#include <cmath>
#include <vector>

#include "buffer.h"

namespace minillm::cpu {
namespace {

constexpr float kMinusInf = -__builtin_inff();

// Row `row` of logits as floats. Ids from `valid` on are left out: the tokenizer does not have them.
struct Row {
  std::vector<float> values;
  float highest;

  Row(const Kernels& kernels, const void* logits, DType dtype, int64_t row, int64_t vocab, int64_t valid)
      : values(valid) {
    int64_t width = dtype == DType::f32 ? 4 : 2;
    highest = kernels.widen(static_cast<const char*>(logits) + row * vocab * width, valid, values.data(), dtype);
  }
};

// Orders ids by falling value; of equal values the lower id comes first.
struct Likelier {
  const std::vector<float>& values;
  bool operator()(int64_t a, int64_t b) const { return values[a] != values[b] ? values[a] > values[b] : a < b; }
};

// The first id with the value `highest`; 0 if `highest` is NaN, which equals no value.
int64_t find_first(const std::vector<float>& values, float highest) {
  auto found = std::find(values.begin(), values.end(), highest);
  return found == values.end() ? 0 : found - values.begin();
}

// Moves the `count` ids of highest value to the front, sorted.
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

// Keeps the smallest set of most likely ids whose total probability reaches top_p. The maximum of `scaled` is 0.
void keep_nucleus(std::vector<int64_t>& ids, const std::vector<float>& scaled, double top_p) {
  double total = 0;
  for (int64_t id : ids) total += std::exp(static_cast<double>(scaled[id]));
  // All ids below the cutoff together have less weight than top_p leaves out, so none of them is kept.
  float cutoff = static_cast<float>(std::log((1 - top_p) / static_cast<double>(ids.size()))) - 0.01f;
  std::erase_if(ids, [&](int64_t id) { return scaled[id] < cutoff; });
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

// SplitMix64's finaliser of key and id: 52 bits for a uniform number.
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

// An upper bound of gumbel(bits): -log u >= 1 - u, and 1 - u >= 2^-k for k counted in bits.
double gumbel_bound(uint64_t bits) {
  uint64_t rest = 0xfffffffffffffu - bits;
  int exponent = rest ? 63 - __builtin_clzll(rest) : -1;
  return (52 - exponent) * 0.6931471806 + 1e-9;
}

// The argmax of score plus noise: a draw from the softmax of the scores (the Gumbel-max trick).
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

int64_t draw(std::vector<float>& values, int64_t favourite, uint64_t key, double temperature, double top_p,
             double min_p, int64_t top_k) {
  int64_t valid = values.size();
  float highest = values[favourite], divisor = moderate(temperature);
  for (float& value : values) value = (value - highest) / divisor;
  Race race(values, key, favourite);
  float lowest = min_p > 0 ? static_cast<float>(std::log(min_p)) : kMinusInf;  // min_p times the highest weight, e^0
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

int64_t sample_row(const Kernels& kernels, const SampleArgs& a, int64_t row) {
  if (a.finite && !a.finite[row]) return 0;
  const double* n = a.numbers + 4 * row;
  int64_t valid = std::min(a.vocab, a.num_token_ids);
  if (n[0] <= 0 && n[3] == 1.0)
    return kernels.first_highest(static_cast<const char*>(a.logits) + row * a.vocab * width_of(a.dtype), valid,
                                 a.dtype);
  int64_t seen_begin = row ? a.seen_end[row - 1] : 0;
  Row read(kernels, a.logits, a.dtype, row, a.vocab, valid);
  std::vector<float>& values = read.values;
  if (n[3] != 1.0) {
    penalise(values, a.seen + seen_begin, a.seen + a.seen_end[row], moderate(n[3]));
    read.highest = *std::max_element(values.begin(), values.end());
  }
  int64_t favourite = find_first(values, read.highest);
  if (n[0] <= 0) return favourite;
  return draw(values, favourite, static_cast<uint64_t>(a.keys[row]), n[0], n[1], n[2], a.top_k[row]);
}

void logprobs_row(const Kernels& kernels, const LogprobsArgs& a, int64_t row) {
  Row read(kernels, a.logits, a.dtype, row, a.vocab, a.vocab);
  const std::vector<float>& values = read.values;
  double highest = read.highest, sum = 0;
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

// Whether all numbers are finite. NaN and infinity have all bits of the exponent set.
template <class Bits>
bool is_finite(const Bits* row, int64_t size, Bits exponent) {
  Bits broken = 0;
  for (int64_t i = 0; i < size; i++) broken |= (row[i] & exponent) == exponent;
  return !broken;
}

bool is_finite_row(const FiniteArgs& a, int64_t row) {
  const char* bits = static_cast<const char*>(a.logits) + row * a.vocab * width_of(a.dtype);
  switch (a.dtype) {
    case DType::f32: return is_finite(reinterpret_cast<const uint32_t*>(bits), a.vocab, uint32_t{0x7f800000});
    case DType::bf16: return is_finite(reinterpret_cast<const uint16_t*>(bits), a.vocab, uint16_t{0x7f80});
    default: return is_finite(reinterpret_cast<const uint16_t*>(bits), a.vocab, uint16_t{0x7c00});
  }
}

// Waking a second thread costs about as much as reading 65,536 numbers, so each thread gets at least that many.
template <class Body>
void over_rows(int64_t rows, int64_t cost_of_a_row, const Body& body) {
  parallel_ranges(
      0, rows, 1 + 65536 / (1 + cost_of_a_row),
      [](int64_t begin, int64_t end, void* context) {
        for (int64_t row = begin; row < end; row++) (*static_cast<const Body*>(context))(row);
      },
      const_cast<Body*>(&body));
}

}  // namespace

void sample(const Kernels& kernels, const SampleArgs& a) {
  bool draws = false;  // a greedy row is only read; a row with noise costs 16 times as much
  for (int64_t row = 0; row < a.rows; row++) draws |= a.numbers[4 * row] > 0;
  over_rows(a.rows, a.vocab * (draws ? 16 : 1), [&](int64_t row) { a.tokens[row] = sample_row(kernels, a, row); });
}

void token_logprobs(const Kernels& kernels, const LogprobsArgs& a) {
  over_rows(a.rows, a.vocab * 16, [&](int64_t row) { logprobs_row(kernels, a, row); });
}

void finite_rows(const FiniteArgs& a) {
  over_rows(a.rows, a.vocab, [&](int64_t row) { a.finite[row] = is_finite_row(a, row); });
}

}  // namespace minillm::cpu
