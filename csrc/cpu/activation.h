// Functions of single numbers: activations, the gate of an MLP, factors and the soft cap.
//
// Bytes: each number is read and written once. FLOPs: 10 to 40 per number, most of them for e^x. Limit: memory with few
// rows, arithmetic with many. Each result is computed in fp32 and rounded once.
//
// Sources: Shazeer, 2002.05202 (gates); Hendrycks & Gimpel, 1606.08415 (GELU); the gpt-oss model card, 2508.10925
// (the clamped gate); Gemma 2, 2408.00118 (soft cap).

#pragma once

#include "rowwise.h"

namespace minillm::cpu {
namespace {

INLINE vf silu(vf x) { return x / (vexp(-x) + 1.0f); }
INLINE vf gelu(vf x) { return x * 0.5f * (verf(x * 0.70710678f) + 1.0f); }
INLINE vf gelu_tanh(vf x) { return x * 0.5f * (vtanh((x * x * x * 0.044715f + x) * 0.79788456f) + 1.0f); }
INLINE vf relu(vf x) { return x < 0.0f ? vf{} : x; }  // NaN stays

// min and max of x and a limit; NaN stays.
INLINE vf at_most(vf x, float limit) { return x > limit ? splat(limit) : x; }
INLINE vf at_least(vf x, float limit) { return x < limit ? splat(limit) : x; }

INLINE vf clamped_swiglu(vf gate, vf up) {
  gate = at_most(gate, 7.0f);
  up = at_least(at_most(up, 7.0f), -7.0f);
  return gate / (vexp(gate * -1.702f) + 1.0f) * (up + 1.0f);
}

// Calls `body` with the function. So each function has its own loop, without a decision for each number.
template <class Body>
INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::silu: return body([](vf x) { return silu(x); });
    case Activation::gelu: return body([](vf x) { return gelu(x); });
    case Activation::gelu_tanh: return body([](vf x) { return gelu_tanh(x); });
    case Activation::relu: return body([](vf x) { return relu(x); });
    case Activation::swiglu_clamped: return;  // has two inputs: `gate_as`
  }
}

template <class T, class Function>
void gate_rows(const GateArgs& a, const Function& function) {
  parallel_for(a.rows, row_grain(a.size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* gate = static_cast<const T*>(a.gate_up) + r * 2 * a.size;
      const T* up = gate + a.size;
      T* y = static_cast<T*>(a.y) + r * a.size;
      for (int64_t i = 0; i < a.size; i += VL)
        store_n(y + i, function(load_n(gate + i, a.size - i), load_n(up + i, a.size - i)), a.size - i);
    }
  });
}

template <class T>
void gate_as(const GateArgs& a) {
  if (a.activation == Activation::swiglu_clamped)
    return gate_rows<T>(a, [](vf gate, vf up) { return clamped_swiglu(gate, up); });
  with_activation(a.activation, [&](auto act) { gate_rows<T>(a, [&](vf gate, vf up) { return act(gate) * up; }); });
}

template <class T, class Function>
void map_rows(const MapArgs& a, const Function& function) {
  parallel_for(a.rows, row_grain(a.size), [&](int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(a.x);
    T* y = static_cast<T*>(a.y);
    for (int64_t r = begin; r < end; r++)
      for (int64_t i = 0; i < a.size; i += VL)
        store_n(y + r * a.size + i, function(load_n(x + r * a.size + i, a.size - i)), a.size - i);
  });
}

template <class T>
void map_as(const MapArgs& a) {
  vf number = splat(a.number);
  switch (a.map) {
    case Map::activation: return with_activation(a.activation, [&](auto act) { map_rows<T>(a, act); });
    case Map::multiply: return map_rows<T>(a, [&](vf x) { return x * number; });
    case Map::divide: return map_rows<T>(a, [&](vf x) { return x / number; });
    case Map::softcap: return map_rows<T>(a, [&](vf x) { return number * vtanh(x / number); });
  }
}

void gate(const GateArgs& a) {
  switch (a.dtype) {
    case DType::f32: return gate_as<float>(a);
    case DType::bf16: return gate_as<bf16>(a);
    case DType::f16: return gate_as<fp16>(a);
  }
}

void map(const MapArgs& a) {
  switch (a.dtype) {
    case DType::f32: return map_as<float>(a);
    case DType::bf16: return map_as<bf16>(a);
    case DType::f16: return map_as<fp16>(a);
  }
}

}  // namespace
}  // namespace minillm::cpu
