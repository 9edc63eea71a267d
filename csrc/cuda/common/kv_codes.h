// Keys and values in 8 bits: their codes, and where they lie in a page (csrc/shared/kv_page.h has the rules).
//
//     a page of one head    | token 0: d0 d1 ... | token 1: d0 d1 ... | ... | scale 0 | scale 1 | ...
//                            \_ a word for each lane: 4 codes _/
//
// K and V have the same layout here, a row of codes for each token. A warp that writes a token's row, or reads rows of a
// tile, has its lanes side by side in memory: a head of 64 is two sectors of 32 bytes, and no sector is fetched for a
// part of it. The layout of K on a CPU, 16 tokens side by side, would make a token's row head_dim bytes in as many
// sectors. The scales of a page lie side by side too; lane i of a warp reads the scale of key i. Accesses have 4 bytes
// and not 16, so pages of any block_size are aligned.
//
//     int8    -127 to 127: a whole number
//     fp8     e4m3: a sign, 4 bits of exponent, 3 of fraction; up to 448, subnormal below 2^-6

#pragma once

#include "codes.h"
#include "kv_page.h"

namespace minillm::cuda {

constexpr int kWordCodes = 4;

// The largest number that a code stands for. A head's scale is its largest number over this.
__device__ __forceinline__ float largest(KvCodes codes) { return codes == KvCodes::int8 ? 127.0f : 448.0f; }

// The number of one code of a word, without its scale.
__device__ __forceinline__ float number_in(KvCodes codes, uint32_t word, int place) {
  uint32_t code = word >> 8 * place & 255;
  if (codes == KvCodes::int8) return static_cast<float>(static_cast<int8_t>(code));
  return number_of<8>(Codes::fp8, static_cast<int>(code));
}

// The code of x / scale: nearest, ties to even. Adding a power of two to a float leaves no bits below the wanted ones.
__device__ __forceinline__ uint32_t code_of(KvCodes codes, float x) {
  float size = fminf(fabsf(x), largest(codes));
  if (codes == KvCodes::int8) {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    return static_cast<uint32_t>(__float_as_int((x < 0 ? -size : size) + magic) - __float_as_int(magic)) & 255;
  }
  int bits = __float_as_int(size);
  int code = size < 0x1p-6f ? __float_as_int(size + 0x1p14f) - __float_as_int(0x1p14f)  // multiples of 2^-9
                            : ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3);
  return static_cast<uint32_t>(code) | (static_cast<uint32_t>(__float_as_int(x)) >> 24 & 128);
}

}  // namespace minillm::cuda
