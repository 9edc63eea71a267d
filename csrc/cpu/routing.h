// The router of a mixture of experts: which experts a row uses, and the weighted sum of what they return.
//
//     logits   0.1  2.0  0.3  1.5     per_token 2 -> chosen 1, 3     weights .62, .38
//
// Contract C2: both are functions of the row alone. The highest logits are chosen, of equal ones those with the lower
// number; NaN counts as the highest. The chosen are in rising order, and the sum goes over them in that order. The
// weights are a softmax over all experts, or over the chosen ones, in fp32.
//
// Bytes: a row of logits per expert chosen, then the chosen outputs once. Source: Shazeer et al., 1701.06538.

#pragma once

#include "rowwise.h"

namespace minillm::cpu {
namespace {

// The softmax of x in place. `x` has room for whole registers.
INLINE void softmax_row(float* x, int64_t size) {
  vf highest = splat(-__builtin_inff()), sum = {};
  for (int64_t i = 0; i < size; i += VL) highest = vmax(highest, first_lanes(load(x + i), size - i, -__builtin_inff()));
  vf shift = splat(max_lanes(highest));
  for (int64_t i = 0; i < size; i += VL) {
    vf weight = first_lanes(vexp(load(x + i) - shift), size - i, 0);
    store(x + i, weight);
    sum = sum + weight;
  }
  vf total = splat(sum_lanes(sum));
  for (int64_t i = 0; i < size; i += VL) store(x + i, load(x + i) / total);
}

INLINE bool is_higher(float a, float b) { return a > b || (a != a && b == b); }

// Marks the `count` highest of x, one after the other.
INLINE void mark_highest(const float* x, int64_t size, int64_t count, bool* taken) {
  memset(taken, 0, size * sizeof(bool));
  for (; count; count--) {
    int64_t best = -1;
    for (int64_t i = 0; i < size; i++)
      if (!taken[i] && (best < 0 || is_higher(x[i], x[best]))) best = i;
    taken[best] = true;
  }
}

template <class T>
void route_as(const RouteArgs& a) {
  parallel_for(a.rows, row_grain(a.count * a.per_token), [&](int64_t begin, int64_t end) {
    Scratch<float> scores(a.count + VL), own(a.per_token + VL);
    Scratch<bool> taken(a.count);
    memset(own.data, 0, (a.per_token + VL) * sizeof(float));
    for (int64_t r = begin; r < end; r++) {
      const T* logits = static_cast<const T*>(a.logits) + r * a.count;
      for (int64_t i = 0; i < a.count; i += VL) store(scores.data + i, load_n(logits + i, a.count - i));
      mark_highest(scores.data, a.count, a.per_token, taken.data);
      if (!a.renormalize) softmax_row(scores.data, a.count);
      int64_t* chosen = a.chosen + r * a.per_token;
      for (int64_t i = 0, k = 0; i < a.count; i++)
        if (taken.data[i]) chosen[k] = i, own.data[k++] = scores.data[i];
      if (a.renormalize) softmax_row(own.data, a.per_token);
      memcpy(a.weights + r * a.per_token, own.data, a.per_token * sizeof(float));
    }
  });
}

template <class T>
void combine_as(const CombineArgs& a) {
  parallel_for(a.rows, row_grain(a.size * a.per_token), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t* places = a.places + r * a.per_token;
      const float* weights = a.weights + r * a.per_token;
      for (int64_t i = 0; i < a.size; i += VL) {
        vf sum = {};
        for (int64_t k = 0; k < a.per_token; k++)
          sum = sum + load_n(static_cast<const T*>(a.outputs) + places[k] * a.size + i, a.size - i) * weights[k];
        store_n(static_cast<T*>(a.y) + r * a.size + i, sum, a.size - i);
      }
    }
  });
}

void route(const RouteArgs& a) {
  switch (a.dtype) {
    case DType::f32: return route_as<float>(a);
    case DType::bf16: return route_as<bf16>(a);
    case DType::f16: return route_as<fp16>(a);
  }
}

void combine(const CombineArgs& a) {
  switch (a.dtype) {
    case DType::f32: return combine_as<float>(a);
    case DType::bf16: return combine_as<bf16>(a);
    case DType::f16: return combine_as<fp16>(a);
  }
}

}  // namespace
}  // namespace minillm::cpu
