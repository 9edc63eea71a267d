// The operations of a layer between its matrix products, one row at a time: norms, gate, rotation.
//
// Bytes: each activation is read and written once or twice. FLOPs: a few per element. Limit: only the cost of
// starting a kernel, so few rows run on one thread. A row's result depends on that row alone: sums run over fixed
// lanes in a fixed order.

#pragma once

#include "kernels.h"
#include "threads.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

// The fewest rows per thread. The number is larger outside a parallel region, where a thread must be woken first.
INLINE int64_t row_grain(int64_t row_size) { return larger(1, (in_parallel_region() ? 1 << 11 : 1 << 14) / larger(1, row_size)); }

// x / rms(x) * weight, computed in fp32 and rounded once. Source: Zhang & Sennrich, 1910.07467.
template <class T>
INLINE void norm_row(const T* x, const T* weight, T* y, int64_t size, float eps) {
  vf squares = {};
  for (int64_t i = 0; i < size; i += VL) {
    vf value = load_n(x + i, size - i);
    squares = fma(value, value, squares);
  }
  float inverse = 1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(size) + eps);
  for (int64_t i = 0; i < size; i += VL)
    store_n(y + i, load_n(x + i, size - i) * inverse * load_n(weight + i, size - i), size - i);
}

template <class T>
void norm_as(const NormArgs& a) {
  int64_t row_size = a.parts * a.size;
  parallel_for(a.rows, row_grain(row_size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      if (a.residual) {
        const T* residual = static_cast<const T*>(a.residual) + r * row_size;
        T* sum = static_cast<T*>(a.sum) + r * row_size;
        for (int64_t i = 0; i < row_size; i += VL)
          store_n(sum + i, load_n(x + i, row_size - i) + load_n(residual + i, row_size - i), row_size - i);
        x = sum;
      }
      for (int64_t i = 0; i < row_size; i += a.size)
        norm_row(x + i, static_cast<const T*>(a.weight), y + i, a.size, a.eps);
    }
  });
}

// silu(gate) * up, silu(g) = g / (1 + e^-g). Source: Shazeer, 2002.05202.
template <class T>
void silu_mul_as(const SiluArgs& a) {
  parallel_for(a.rows, row_grain(a.size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* gate = static_cast<const T*>(a.gate_up) + r * 2 * a.size;
      const T* up = gate + a.size;
      T* y = static_cast<T*>(a.y) + r * a.size;
      for (int64_t i = 0; i < a.size; i += VL) {
        vf g = load_n(gate + i, a.size - i);
        store_n(y + i, g / (vexp(-g) + 1.0f) * load_n(up + i, a.size - i), a.size - i);
      }
    }
  });
}

// (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of a head. Source: Su et al., 2104.09864.
template <class T>
INLINE void rotate_head(const T* x, const float* cos, const float* sin, T* y, int64_t half) {
  for (int64_t i = 0; i < half; i += VL) {
    int64_t n = half - i;
    vf a = load_n(x + i, n), b = load_n(x + half + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
    store_n(y + i, a * c - b * s, n);
    store_n(y + half + i, b * c + a * s, n);
  }
}

template <class T>
void rope_and_cache_as(const RopeArgs& a) {
  int64_t dim = a.heads.head_dim, half = dim / 2, kv_size = a.heads.num_kv_heads * dim;
  parallel_for(a.batch.num_tokens, row_grain((a.heads.num_heads + 2 * a.heads.num_kv_heads) * dim),
            [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float* cos = a.rope.cos + a.batch.positions[t] * half;
      const float* sin = a.rope.sin + a.batch.positions[t] * half;
      const T* q = static_cast<const T*>(a.q) + t * a.q_stride;
      const T* k = static_cast<const T*>(a.k) + t * a.k_stride;
      T* q_out = static_cast<T*>(a.q_out) + t * a.q_out_stride;
      T* k_out = static_cast<T*>(a.cache.k) + a.batch.slot_mapping[t] * kv_size;
      T* v_out = static_cast<T*>(a.cache.v) + a.batch.slot_mapping[t] * kv_size;
      for (int64_t h = 0; h < a.heads.num_heads; h++) rotate_head(q + h * dim, cos, sin, q_out + h * dim, half);
      for (int64_t h = 0; h < a.heads.num_kv_heads; h++) rotate_head(k + h * dim, cos, sin, k_out + h * dim, half);
      memcpy(v_out, static_cast<const T*>(a.v) + t * a.v_stride, kv_size * sizeof(T));
    }
  });
}

// Writes one row as floats; returns the maximum.
template <class T>
float widen_as(const T* x, int64_t size, float* y) {
  vf highest = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + VL <= size; i += VL) {
    vf value = load(x + i);
    store(y + i, value);
    highest = vmax(highest, value);
  }
  float result = max_lanes(highest);
  for (; i < size; i++) {
    y[i] = load_n(x + i, 1)[0];
    result = result > y[i] ? result : y[i];
  }
  return result;
}

float widen(const void* x, int64_t size, float* y, DType dtype) {
  switch (dtype) {
    case DType::bf16: return widen_as(static_cast<const bf16*>(x), size, y);
    case DType::f16: return widen_as(static_cast<const fp16*>(x), size, y);
    default: return widen_as(static_cast<const float*>(x), size, y);
  }
}

template <class T>
float highest_of(const T* x, int64_t size) {
  vf highest[4] = {splat(-__builtin_inff()), highest[0], highest[0], highest[0]};  // four independent chains
  int64_t whole = size / (4 * VL) * (4 * VL);
  for (int64_t i = 0; i < whole; i += 4 * VL)
    for (int j = 0; j < 4; j++) highest[j] = vmax(highest[j], load(x + i + j * VL));
  float result = max_lanes(vmax(vmax(highest[0], highest[1]), vmax(highest[2], highest[3])));
  for (int64_t i = whole; i < size; i++) {
    float value = load_n(x + i, 1)[0];
    result = result > value ? result : value;
  }
  return result;
}

// The first index of the maximum; 0 if a NaN makes the maximum NaN. A greedy draw reads the stored numbers and writes
// nothing: it reads them once for the maximum, and again piece by piece until the first piece that contains it.
template <class T>
int64_t first_highest_as(const T* x, int64_t size) {
  constexpr int64_t piece = 16 * VL;
  float best = highest_of(x, size);
  for (int64_t begin = 0; begin < size; begin += piece) {
    int64_t end = smaller(begin + piece, size);
    if (highest_of(x + begin, end - begin) != best) continue;
    for (int64_t i = begin; i < end; i++)
      if (load_n(x + i, 1)[0] == best) return i;
  }
  return 0;
}

int64_t first_highest(const void* x, int64_t size, DType dtype) {
  switch (dtype) {
    case DType::bf16: return first_highest_as(static_cast<const bf16*>(x), size);
    case DType::f16: return first_highest_as(static_cast<const fp16*>(x), size);
    default: return first_highest_as(static_cast<const float*>(x), size);
  }
}

void norm(const NormArgs& a) {
  switch (a.dtype) {
    case DType::f32: return norm_as<float>(a);
    case DType::bf16: return norm_as<bf16>(a);
    case DType::f16: return norm_as<fp16>(a);
  }
}

void silu_mul(const SiluArgs& a) {
  switch (a.dtype) {
    case DType::f32: return silu_mul_as<float>(a);
    case DType::bf16: return silu_mul_as<bf16>(a);
    case DType::f16: return silu_mul_as<fp16>(a);
  }
}

void rope_and_cache(const RopeArgs& a) {
  switch (a.heads.dtype) {
    case DType::f32: return rope_and_cache_as<float>(a);
    case DType::bf16: return rope_and_cache_as<bf16>(a);
    case DType::f16: return rope_and_cache_as<fp16>(a);
  }
}

}  // namespace
}  // namespace minillm::cpu
