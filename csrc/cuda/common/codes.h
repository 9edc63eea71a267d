// Quantised matrices in a kernel: where their parts lie (csrc/shared/codes_layout.h), and the number of each code.
//
//     a line: 64 bytes    | output 0 | output 1 | ... | output 15 |     32 bits each: 8 inputs of 4 bits, 4 of 8 bits
//     a warp reads        | ------ line l ----- | ------ line l + 1 ----- |             128 bytes, one word for each lane
//
// The layout is the one of csrc/cpu, unchanged, because it is right for a GPU as well. A product reads 16 outputs as one
// stream: lanes that lie side by side read words that lie side by side, and begin at a multiple of 64 bytes, so no
// sector of 32 bytes is fetched for a part of it. The scales of a group lie in the same stream, and its 16 outputs are
// one or two sectors. The other way, one output's groups side by side, would suit a warp that computes one output; its
// lanes would each need a scale of their own, and the sum would go over lanes. So a matrix has one form in memory, and
// moving it from the CPU to a GPU is a copy.
//
// Codes become numbers by arithmetic: a whole number is converted, a small float has its bits moved into those of a
// float with a smaller exponent. A table would be looked up 16 times (4 bits) or 256 (8 bits) in banks that conflict.

#pragma once

#include "codes_layout.h"
#include "dispatch.h"

namespace minillm::cuda {

// Inputs of a line.
template <int kBits>
constexpr int kLineInputs = 32 / kBits;

// The code of one input of a line: even inputs are in the lower half of the word.
template <int kBits>
__device__ __forceinline__ int code_in(uint32_t word, int place) {
  return static_cast<int>(word >> ((place & 1) * 16 + (place >> 1) * kBits) & ((1u << kBits) - 1));
}

// Kernels exist for codes of 4 and of 8 bits. Which kind they are is the same for all threads, so it is no template
// argument: there would be five kernels for two, and the products take longer than the unpacking.
template <int kBits>
__device__ __forceinline__ float number_of(Codes codes, int code) {
  if (codes == Codes::int8 || codes == Codes::int4) return static_cast<float>(code - (1 << (kBits - 1)));
  if (codes == Codes::uint4) return static_cast<float>(code);
  // Exponent and fraction without the sign, as the bits of a float that is 2^120 or 2^126 times too small, and may be
  // subnormal.
  constexpr int sign = 1 << (kBits - 1);
  float size = __int_as_float((code & (sign - 1)) << (kBits == 8 ? 20 : 22)) * (kBits == 8 ? 0x1p120f : 0x1p126f);
  return code & sign ? -size : size;
}

// f is called with the bits of a code as an integral_constant, and with a zero of the number type.
template <class F>
void with_bits_and_type(Codes codes, DType dtype, F f) {
  with_number_type(dtype, [&](auto zero) {
    if (bits_of(codes) == 8) return f(std::integral_constant<int, 8>{}, zero);
    f(std::integral_constant<int, 4>{}, zero);
  });
}

// The layout of a matrix in 32 bits: a block has less than 2^31 bytes, the matrix may have more.
struct CodesView {
  const char* blocks;
  const int32_t* order;  // [in]: code k belongs to input order[k]; null: in order
  int64_t block;         // bytes of 16 outputs
  int group, lines, lines_in_group;  // inputs of a group; lines of a block, and of a group
  int in_pairs;                      // 1: a chunk has two groups
  int chunk, head, own;              // bytes of a chunk, of all its scales, of one group's scales
  int runs;                          // threads that round a group of x to int8; 0: x is not rounded
  Codes codes;
  bool wide, minimum;

  CodesView(const void* weight, const Form& form, int in)
      : blocks(static_cast<const char*>(weight)), order(form.order), codes(form.codes), wide(form.wide), minimum(form.minimum) {
    const CodesLayout layout(form, in);
    block = layout.block;
    group = static_cast<int>(layout.group);
    lines = static_cast<int>((in + layout.line - 1) / layout.line);
    lines_in_group = static_cast<int>(layout.group / layout.line);
    in_pairs = layout.paired;
    chunk = static_cast<int>(layout.chunk);
    head = static_cast<int>(layout.head);
    own = head >> in_pairs;
    runs = !form.int8_x ? 0 : layout.groups == 1 ? 16 : group / 8;
  }

  // The block with an output.
  __device__ __forceinline__ const char* block_of(int64_t output) const { return blocks + output / 16 * block; }

  // The word of an output in a line of group g.
  __device__ __forceinline__ uint32_t word(const char* block, int g, int line, int output) const {
    int at = (g >> in_pairs) * chunk + head + ((g & in_pairs) * lines_in_group + line) * 64;
    return *reinterpret_cast<const uint32_t*>(block + at + output * 4);
  }

  __device__ __forceinline__ float scale(const char* block, int g, int output) const {
    return number(block + (g >> in_pairs) * chunk + (g & in_pairs) * own, output);
  }
  __device__ __forceinline__ float minimum_of(const char* block, int g, int output) const {
    return number(block + (g >> in_pairs) * chunk + (g & in_pairs) * own + own / 2, output);
  }

 private:
  __device__ __forceinline__ float number(const char* scales, int output) const {
    return wide ? reinterpret_cast<const float*>(scales)[output] : to_float(reinterpret_cast<const float16*>(scales)[output]);
  }
};

}  // namespace minillm::cuda
