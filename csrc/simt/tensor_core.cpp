// The sum inside one mma.sync m16n8k16, as an H100 makes it, to the bit.
//
//     c   ------------------->  |---.---------------|        17 numbers are aligned to the largest exponent
//     a0 * b0  -------------->      |--.------------|        among them; bits below 2^-25 of it are cut off;
//     ...                           :               :        the rest is added exactly, and the sum is cut
//     a15 * b15  ------------>  |----.--------------|        to a float towards zero
//
// The exponent of a product is the sum of its factors' exponents, even if the product itself is larger by one. A
// subnormal factor has the smallest exponent of its type. PTX does not specify any of this. It was measured with
// scripts/gpu/tensor_cores.cu: of 144 models only this one gave every bit of 9,363 dot products in bf16 and of
// 9,363 in fp16. tests/cuda/test_tensor_core.py compares it with dot products of the chip. On that chip wgmma gave
// the bits of a chain of mma.sync, and no element depended on its place. Other chips sum in other groups and keep
// other bits. Left out: NaN and infinities are summed plainly; overflow was not measured.
//
// Source of the method: Fasi et al., "Numerical behavior of NVIDIA tensor cores" (PeerJ CS, 2021).

#include "tensor_core.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simt.h"

namespace simt {
namespace {

constexpr int kKeptBits = 25;     // below the largest exponent
constexpr int kNone = INT32_MIN;  // exponent of a zero
constexpr int kSafe = 120;        // the sum of 17 numbers with exponents up to here is finite

float cut_to_float(int64_t sum, int exponent) {  // sum * 2^exponent, towards zero
  uint64_t size = sum < 0 ? -static_cast<uint64_t>(sum) : sum;
  while (size >> 24) size >>= 1, exponent++;
  for (; size && exponent < -149; exponent++) size >>= 1;  // a subnormal result keeps fewer bits
  float result = std::ldexp(static_cast<float>(size), exponent);
  return sum < 0 ? -result : result;
}

// c + a[0] * b[0] + ..., one after another: for what is not finite.
float plain_sum(const Factor* a, const Factor* b, float c) {
  for (int k = 0; k < 16; k++) c = std::fma(a[k].number, b[k].number, c);
  return c;
}

}  // namespace

Factor factor_of(float x, int smallest_exponent) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  int biased = bits >> 23 & 0xFF;
  int32_t significand = bits & 0x7FFFFF, exponent = std::max(biased, 1) - 127;
  if (biased) significand |= 0x800000;
  // An fp16 subnormal is a normal float. Its significand then has zeros in front instead. No bit is lost: it has
  // at most 10 significant bits.
  for (; significand && exponent < smallest_exponent; exponent++) significand >>= 1;
  if (biased == 0xFF) exponent = 2 * kSafe;  // infinity or NaN
  return {bits >> 31 ? -significand : significand, significand ? exponent : kNone, x};
}

float tensor_core_sum(const Factor* a, const Factor* b, float c) {
  const Factor start = factor_of(c, -126);
  // Products of 24 by 24 bits. Factors have 8 or 11 that count, so 48 bits hold all; c is multiplied by 1.
  int64_t significands[17];
  int exponents[17], largest = kNone;
  for (int k = 0; k < 16; k++) {
    significands[k] = int64_t{a[k].significand} * b[k].significand;
    exponents[k] = significands[k] ? a[k].exponent + b[k].exponent : kNone;
    largest = std::max(largest, exponents[k]);
  }
  significands[16] = int64_t{start.significand} << 23;
  exponents[16] = start.exponent;
  largest = std::max(largest, exponents[16]);
  bool overflows = largest > kSafe;
  for (int k = 0; k < 16; k++) overflows |= a[k].exponent > kSafe + 8 || b[k].exponent > kSafe + 8;  // 0 * infinity
  if (largest == kNone || overflows) {
    float plain = plain_sum(a, b, c);
    if (largest == kNone || !std::isfinite(plain)) return plain;
  }

  int64_t sum = 0;
  for (int k = 0; k < 17; k++) {
    if (!significands[k]) continue;
    int64_t cut = 46 - kKeptBits + int64_t{largest} - exponents[k];  // significands stand for multiples of 2^(exponent - 46)
    if (cut < 63) sum += significands[k] < 0 ? -(-significands[k] >> cut) : significands[k] >> cut;  // towards zero
  }
  return cut_to_float(sum, largest - kKeptBits);
}

void multiply_tiles(void* const* operands, float (*number)(uint16_t), int smallest_exponent) {
  const MmaOperands* const* lanes = reinterpret_cast<const MmaOperands* const*>(operands);
  Factor a[16][16], b[8][16];  // rows of a, columns of b
  for (int k = 0; k < 16; k++) {
    int half = k / 8, pair = k % 8 / 2;
    for (int row = 0; row < 16; row++)
      a[row][k] = factor_of(number(lanes[row % 8 * 4 + pair]->a[half * 4 + row / 8 * 2 + k % 2]), smallest_exponent);
    for (int col = 0; col < 8; col++)
      b[col][k] = factor_of(number(lanes[col * 4 + pair]->b[half * 2 + k % 2]), smallest_exponent);
  }
  for (int row = 0; row < 16; row++)
    for (int col = 0; col < 8; col++) {
      float& c = lanes[row % 8 * 4 + col / 2]->c[row / 8 * 2 + col % 2];
      c = tensor_core_sum(a[row], b[col], c);
    }
  count_mma();
}

}  // namespace simt
