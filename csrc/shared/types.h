// The words in which csrc/cpu and csrc/cuda describe a model and the rows of a pass.
//
// Sizes and strides count elements, not bytes. Inner dimensions are dense.

#pragma once

#include <cstdint>

namespace minillm {

enum class DType : int { f32, bf16, f16 };

inline int64_t width_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// The same order as in `kActivations` (tensors.h). The clamped SwiGLU needs a gate.
enum class Activation : int { silu, gelu, gelu_tanh, relu, swiglu_clamped };

// The numbers that codes of 8 or 4 bits stand for: code - 128, e4m3; code - 8, code, e2m1. `none`: not quantised.
// The same order as in `kCodes` (codes_layout.h).
enum class Codes : int { none, int8, fp8, int4, uint4, fp4 };

// A quantised matrix. Each output has a scale, and perhaps a minimum, for every `group` inputs, in fp32 or fp16:
//     weight = scale * number(code) + minimum
struct Form {
  Codes codes;
  int64_t group;
  bool wide;     // scales and minima are fp32
  bool minimum;  // there are minima
  bool int8_x;   // a product rounds its activations to int8, with a scale for each row and group
  const int32_t* order;  // [in]: code i belongs to input order[i]; null: in order
};

// A matrix [out, in] and its bias. csrc/cpu packs it (cpu/kernels.h) and may store it in bf16 where activations are
// float32; for csrc/cuda it is row-major and of the activations' dtype. A quantised one is the same for both
// (codes_layout.h).
struct Matrix {
  const void* weight;
  DType dtype;
  const void* bias;  // [out], or null
  Form form;         // of a quantised matrix; `dtype` is then that of the activations
};

// The weights of a norm. With a bias it is LayerNorm, else RMSNorm.
struct Norm {
  const void* weight;  // [size], or null: there is no norm
  const void* bias;    // [size], or null
  int64_t size;
};

// Which rows belong to which sequence (pictured in minillm/ops/contract.py).
struct Batch {
  const int64_t* positions;     // [num_tokens]
  const int64_t* slot_mapping;  // [num_tokens]
  const int32_t* block_table;   // [num_seqs, table_stride]
  int64_t table_stride;
  const int32_t* query_start;  // [num_seqs + 1]
  const int32_t* kv_len;       // [num_seqs]
  int64_t num_tokens, num_seqs;
};

// What a KV cache holds: numbers of the model's dtype, or codes of 8 bits with scales (kv_page.h).
enum class KvCodes : int { none, int8, fp8 };

struct Heads {
  int64_t num_heads, num_kv_heads, head_dim, block_size;
  DType dtype;  // of q, k and v
  KvCodes kv;   // of the cache
};

struct RopeTables {
  const float *cos, *sin;  // [max_positions, half]
  int64_t half;            // half the components of a head that are rotated; the others are kept
};

struct LayerCache {
  void *k, *v;  // [num_blocks, block_size, num_kv_heads, head_dim], or pages of codes (kv_page.h)
};

}  // namespace minillm
