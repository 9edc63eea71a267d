// The operations of a layer between its matrix products, one row at a time: norms, sums, rotation.
//
// Bytes: each activation is read and written once or twice. FLOPs: a few per element. Limit: only the cost of
// starting a kernel, so few rows run on one thread. A row's result depends on that row alone: sums run over fixed
// lanes in a fixed order.

#pragma once

#include "kernels.h"
#include "kv_int8.h"
#include "threads.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

// The fewest rows per thread. The number is larger outside a parallel region, where a thread must be woken first.
INLINE int64_t row_grain(int64_t row_size) { return larger(1, (in_parallel_region() ? 1 << 11 : 1 << 14) / larger(1, row_size)); }

template <class T>
INLINE void add_row(const T* x, const T* y, T* sum, int64_t size) {
  for (int64_t i = 0; i < size; i += VL)
    store_n(sum + i, load_n(x + i, size - i) + load_n(y + i, size - i), size - i);
}

// x / rms(x) * (weight + offset), computed in fp32 and rounded once. Source: Zhang & Sennrich, 1910.07467.
template <class T>
INLINE void rms_row(const T* x, const T* weight, T* y, int64_t size, float eps, float offset) {
  vf squares = {};
  for (int64_t i = 0; i < size; i += VL) {
    vf value = load_n(x + i, size - i);
    squares = fma(value, value, squares);
  }
  float inverse = 1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(size) + eps);
  for (int64_t i = 0; i < size; i += VL) {
    vf factor = load_n(weight + i, size - i);
    if (offset != 0) factor = factor + offset;
    store_n(y + i, load_n(x + i, size - i) * inverse * factor, size - i);
  }
}

// (x - mean) / deviation * weight + bias, likewise. Source: Ba et al., 1607.06450.
template <class T>
INLINE void layer_norm_row(const T* x, const T* weight, const T* bias, T* y, int64_t size, float eps) {
  vf sum = {}, squares = {};
  for (int64_t i = 0; i < size; i += VL) sum = sum + load_n(x + i, size - i);
  float mean = sum_lanes(sum) / static_cast<float>(size);
  for (int64_t i = 0; i < size; i += VL) {
    vf distance = first_lanes(load_n(x + i, size - i) - mean, size - i, 0);
    squares = fma(distance, distance, squares);
  }
  float inverse = 1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(size) + eps);
  for (int64_t i = 0; i < size; i += VL) {
    int64_t n = size - i;
    store_n(y + i, (load_n(x + i, n) - mean) * inverse * load_n(weight + i, n) + load_n(bias + i, n), n);
  }
}

template <class T>
void norm_as(const NormArgs& a) {
  int64_t size = a.norm.size, row_size = a.parts * size;
  const T *weight = static_cast<const T*>(a.norm.weight), *bias = static_cast<const T*>(a.norm.bias);
  parallel_for(a.rows, row_grain(row_size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
      T* y = static_cast<T*>(a.y) + r * a.y_stride;
      if (a.residual) {
        const T* residual = static_cast<const T*>(a.residual) + r * row_size;
        T* sum = static_cast<T*>(a.sum) + r * row_size;
        add_row(x, residual, sum, row_size);
        x = sum;
      }
      for (int64_t i = 0; i < row_size; i += size) {
        if (bias) layer_norm_row(x + i, weight, bias, y + i, size, a.eps);
        else rms_row(x + i, weight, y + i, size, a.eps, a.offset);
      }
    }
  });
}

template <class T>
void add_as(const AddArgs& a) {
  parallel_for(a.rows, row_grain(a.size), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++)
      add_row(static_cast<const T*>(a.x) + r * a.size,
              static_cast<const T*>(a.y) + (a.y_rows ? a.y_rows[r] : r) * a.size, static_cast<T*>(a.sum) + r * a.size,
              a.size);
  });
}

// (a, b) -> (a cos - b sin, b cos + a sin), a and b the first and the second `half` components of a head. The
// components after them are copied. Source: Su et al., 2104.09864.
template <class T>
INLINE void rotate_head(const T* x, const float* cos, const float* sin, T* y, int64_t half, int64_t dim) {
  for (int64_t i = 0; i < half; i += VL) {
    int64_t n = half - i;
    vf a = load_n(x + i, n), b = load_n(x + half + i, n), c = load_n(cos + i, n), s = load_n(sin + i, n);
    store_n(y + i, a * c - b * s, n);
    store_n(y + half + i, b * c + a * s, n);
  }
  if (y != x && 2 * half < dim) memcpy(y + 2 * half, x + 2 * half, (dim - 2 * half) * sizeof(T));
}

template <class T>
void rope_and_cache_as(const RopeArgs& a) {
  int64_t dim = a.heads.head_dim, half = a.rope.half, kv_size = a.heads.num_kv_heads * dim;
  parallel_for(a.batch.num_tokens, row_grain((a.heads.num_heads + 2 * a.heads.num_kv_heads) * dim),
            [&](int64_t begin, int64_t end) {
    Scratch<T> rotated(dim);
    for (int64_t t = begin; t < end; t++) {
      const float* cos = a.rope.cos + a.batch.positions[t] * half;
      const float* sin = a.rope.sin + a.batch.positions[t] * half;
      const T* q = static_cast<const T*>(a.q) + t * a.q_stride;
      const T* k = static_cast<const T*>(a.k) + t * a.k_stride;
      T* q_out = static_cast<T*>(a.q_out) + t * a.q_out_stride;
      const T* v = static_cast<const T*>(a.v) + t * a.v_stride;
      for (int64_t h = 0; h < a.heads.num_heads; h++) rotate_head(q + h * dim, cos, sin, q_out + h * dim, half, dim);
      if (a.heads.kv == KvCodes::int8) {
        Int8Slot slot(a.heads, a.batch.slot_mapping[t]);
        for (int64_t h = 0; h < a.heads.num_kv_heads; h++) {
          rotate_head(k + h * dim, cos, sin, rotated.data, half, dim);
          slot.put_key(a.cache.k, h, rotated.data);
          slot.put_value(a.cache.v, h, v + h * dim);
        }
        continue;
      }
      T* k_out = static_cast<T*>(a.cache.k) + a.batch.slot_mapping[t] * kv_size;
      T* v_out = static_cast<T*>(a.cache.v) + a.batch.slot_mapping[t] * kv_size;
      for (int64_t h = 0; h < a.heads.num_kv_heads; h++) rotate_head(k + h * dim, cos, sin, k_out + h * dim, half, dim);
      memcpy(v_out, v, kv_size * sizeof(T));
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

void add(const AddArgs& a) {
  switch (a.dtype) {
    case DType::f32: return add_as<float>(a);
    case DType::bf16: return add_as<bf16>(a);
    case DType::f16: return add_as<fp16>(a);
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
