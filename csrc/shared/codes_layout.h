// Where the numbers of a quantised matrix [out, in] lie in memory.
//
//     header   64 bytes: what the matrix is (`CodesHeader`)
//     order    int32 [in], if the inputs are permuted, filled up to 64 bytes
//     blocks   one for every 16 outputs:
//
//         chunk                                         chunk
//         [ scales, minima | codes | codes ]            [ scales, minima | codes | codes ]     groups 0 1, groups 2 3
//
// A chunk begins with the scales of its groups, 16 outputs of the first group, then of the second; minima follow each.
// It has as many groups, one or two, as fill whole lines of 64 bytes, so that every line of codes is aligned and a
// product reads one stream of memory. A line of codes has 32 bits for each of 16 outputs:
//
//     4 bits    | 0 2 4 6 | 1 3 5 7 |     8 inputs, from the lowest bit up; even inputs in the lower half, so that a
//     8 bits    |  0   2  |  1   3  |     4 inputs     register of pairs of 16 bits is one shift away
//
// Codes beyond `in`, and outputs beyond `out`, are zero.

#pragma once

#include "types.h"

namespace minillm {

constexpr const char* kCodes[] = {"none", "int8", "fp8", "int4", "uint4", "fp4"};
constexpr int32_t kCodesMagic = 0x3151'4c4d;  // "MLQ1"
constexpr int64_t kLine = 64;                 // bytes
constexpr int64_t kMaxInt8Group = 128;        // with activations in int8: 128 products of at most 255 * 127 are < 2^24

struct CodesHeader {
  int32_t magic, codes, group, wide, minimum, ordered, out, in, int8_x, unused[7];
};
static_assert(sizeof(CodesHeader) == kLine);

inline int bits_of(Codes codes) { return codes == Codes::int8 || codes == Codes::fp8 ? 8 : 4; }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct CodesLayout {
  int64_t in, group;     // `group` is at most `in`, filled up to whole lines
  int64_t line;          // inputs of one line
  int64_t groups;
  int64_t paired;        // 1 if a chunk has two groups, else 0
  int64_t own;           // bytes of one group's scales and minima
  int64_t head, chunk;   // bytes of a chunk's scales, and of all of it
  int64_t lines, last;   // lines of a group, and of the last one, which may have fewer inputs
  int64_t block;         // bytes of 16 outputs

  CodesLayout(const Form& form, int64_t inputs) : in(inputs) {
    line = 32 / bits_of(form.codes);
    group = form.group < in ? form.group : round_up(in, line);
    groups = (in + group - 1) / group;
    own = 16 * (form.wide ? 4 : 2) * (form.minimum ? 2 : 1);
    paired = own < kLine;
    head = own << paired;
    lines = (group + line - 1) / line;
    last = (in - (groups - 1) * group + line - 1) / line;
    chunk = head + (lines * kLine << paired);
    block = groups ? codes(groups - 1) + last * kLine : 0;
  }

  // No division: kernels call these for every group.
  int64_t lines_of(int64_t g) const { return g + 1 < groups ? lines : last; }
  // Offsets in a block: of a group's scales, of its minima after them, of its codes.
  int64_t scales(int64_t g) const { return (g >> paired) * chunk + (g & paired) * own; }
  int64_t codes(int64_t g) const { return (g >> paired) * chunk + head + (g & paired) * lines * kLine; }
};

// Bytes of the blocks of a matrix [out, in]; it may be the matrices of several experts.
inline int64_t blocks_bytes(const Form& form, int64_t out, int64_t in) {
  return (out + 15) / 16 * CodesLayout(form, in).block;
}
inline int64_t order_bytes(int64_t in, bool ordered) { return ordered ? round_up(4 * in, kLine) : 0; }

}  // namespace minillm
