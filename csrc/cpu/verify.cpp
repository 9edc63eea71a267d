// Which drafted tokens are accepted: minillm/ops/verification.py in C++ (the two rules and their reasons are there).
//
// verify_coupled compares a few hundred integers. verify_draft compares p and q of each drafted token. Then it draws
// one token after the accepted ones, from weights w = p or max(p - q, 0):
//
//     ids      0 .. 255 | 256 .. 511 | 512 ..          1. the sum of each chunk
//     sums       0.11   |    0.48    |  0.30           2. the chunk in which the running sum exceeds u * total
//     running    0.11   |  > 0.59 <  |  0.89           3. the id within the chunk
//
// Bytes: p and q are read once, and one chunk again. Limit: memory, with one core per request. Sums are float64, in
// an order that depends only on the vocabulary size: neither threads nor other requests can change a token.

#include <vector>

#include "kernels.h"
#include "threads.h"

namespace minillm::cpu {
namespace {

// ---- coupled ----------------------------------------------------------------------------------

// The first child of node `at` whose drafted token equals the token sampled at `at`; -1 if there is none.
int64_t matching_child(const CoupledArgs& a, int64_t begin, int64_t end, int64_t at) {
  for (int64_t n = at + 1; n < end; n++)
    if (a.parents[n] == at - begin && a.drafted[n] == a.sampled[at]) return n;
  return -1;
}

void walk(const CoupledArgs& a, int64_t request) {
  int64_t begin = a.node_start[request], end = a.node_start[request + 1], to = begin;
  for (int64_t at = begin < end ? begin : -1; at >= 0; at = matching_child(a, begin, end, at), to++) {
    a.tokens[to] = a.sampled[at];
    a.nodes[to] = at - begin;
  }
  for (; to < end; to++) a.tokens[to] = a.nodes[to] = -1;
}

// ---- a draw -----------------------------------------------------------------------------------

constexpr int64_t kChunk = 256, kLanes = 8;

// Eight independent running sums: a single one would wait for the latency of the previous addition at every id.
template <class Weight>
double sum_of(int64_t begin, int64_t end, const Weight& weight) {
  double lanes[kLanes] = {}, sum = 0;
  int64_t id = begin;
  for (; id + kLanes <= end; id += kLanes)
    for (int64_t lane = 0; lane < kLanes; lane++) lanes[lane] += weight(id + lane);
  for (; id < end; id++) sum += weight(id);
  for (double lane : lanes) sum += lane;
  return sum;
}

// The first of `count` terms at which the running sum exceeds `threshold`. If rounding keeps the sum below it: the
// last term that is not 0. A term of 0 is never returned; -1 if all terms are 0.
template <class Term>
int64_t pass(int64_t count, double& running, double threshold, const Term& term) {
  int64_t last = -1;
  double before_last = running;
  for (int64_t i = 0; i < count; i++) {
    double value = term(i);
    if (!(value > 0)) continue;
    last = i;
    before_last = running;
    if (running + value > threshold) break;
    running += value;
  }
  running = before_last;
  return last;
}

template <class Weight>
int64_t draw(int64_t vocab, double uniform, const Weight& weight) {
  std::vector<double> sums((vocab + kChunk - 1) / kChunk);
  double total = 0, running = 0;
  for (int64_t c = 0; c < static_cast<int64_t>(sums.size()); c++) {
    sums[c] = sum_of(c * kChunk, smaller((c + 1) * kChunk, vocab), weight);
    total += sums[c];
  }
  int64_t chunk = pass(sums.size(), running, uniform * total, [&](int64_t c) { return sums[c]; });
  if (chunk < 0) return -1;
  int64_t first = chunk * kChunk, size = smaller(kChunk, vocab - first);
  return first + pass(size, running, uniform * total, [&](int64_t i) { return weight(first + i); });
}

// Draws from max(p - q, 0), where q is a function of the id; from p if that is 0 everywhere.
template <class Draft>
int64_t draw_rest(const float* p, int64_t vocab, double uniform, const Draft& q) {
  auto rest = [&](int64_t id) {
    double more = static_cast<double>(p[id]) - q(id);
    return more > 0 ? more : 0;
  };
  int64_t token = draw(vocab, uniform, rest);
  return token >= 0 ? token : draw(vocab, uniform, [&](int64_t id) { return static_cast<double>(p[id]); });
}

// ---- rejection --------------------------------------------------------------------------------

void accept_and_draw(const DraftArgs& a, int64_t request) {
  const int64_t* draft = a.draft + request * a.k;
  const double* uniforms = a.uniforms + request * (a.k + 1);
  int64_t *tokens = a.tokens + request * (a.k + 1), stands = 0;
  for (; stands < a.k && draft[stands] >= 0; stands++) {
    int64_t id = draft[stands];
    double p = a.target_probs[(request * (a.k + 1) + stands) * a.vocab + id];
    double q = a.draft_probs ? a.draft_probs[(request * a.k + stands) * a.vocab + id] : 1.0;
    if (!(uniforms[stands] * q < p)) break;
    tokens[stands] = id;
  }
  a.accepted[request] = stands;

  const float* p = a.target_probs + (request * (a.k + 1) + stands) * a.vocab;
  double uniform = uniforms[a.k];
  if (stands == a.k || draft[stands] < 0) {
    tokens[stands] = draw_rest(p, a.vocab, uniform, [](int64_t) { return 0.0; });
  } else if (a.draft_probs) {
    const float* q = a.draft_probs + (request * a.k + stands) * a.vocab;
    tokens[stands] = draw_rest(p, a.vocab, uniform, [q](int64_t id) { return static_cast<double>(q[id]); });
  } else {
    int64_t fallen = draft[stands];
    tokens[stands] = draw_rest(p, a.vocab, uniform, [fallen](int64_t id) { return id == fallen ? 1.0 : 0.0; });
  }
  for (int64_t i = stands + 1; i <= a.k; i++) tokens[i] = -1;
}

}  // namespace

void verify_coupled(const CoupledArgs& a) {
  parallel_for(a.requests, 64, [&](int64_t begin, int64_t end) {
    for (int64_t request = begin; request < end; request++) walk(a, request);
  });
}

void verify_draft(const DraftArgs& a) {
  int64_t grain = 1 + 16384 / a.vocab;  // waking a thread costs about as much as 16,384 ids
  parallel_for(a.requests, grain, [&](int64_t begin, int64_t end) {
    for (int64_t request = begin; request < end; request++) accept_and_draw(a, request);
  });
}

}  // namespace minillm::cpu
