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

#include "simt.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace simt {
namespace {

constexpr int kKeptBits = 25;  // below the largest exponent

// |x| = significand * 2^(exponent - 23), for a finite x.
struct Parts {
  int64_t significand;
  int exponent;
  bool negative;
};

Parts parts_of(float x, int smallest_exponent) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  int biased = bits >> 23 & 0xFF;
  int64_t fraction = bits & 0x7FFFFF;
  Parts parts = {biased ? fraction | 0x800000 : fraction, std::max(biased, 1) - 127, bits >> 31 != 0};
  // An fp16 subnormal is a normal float. Its significand then has zeros in front instead. No bit is lost: it has
  // at most 10 significant bits.
  for (; parts.significand && parts.exponent < smallest_exponent; parts.exponent++) parts.significand >>= 1;
  return parts;
}

float cut_to_float(int64_t sum, int exponent) {  // sum * 2^exponent, towards zero
  uint64_t size = sum < 0 ? -static_cast<uint64_t>(sum) : sum;
  while (size >> 24) size >>= 1, exponent++;
  for (; size && exponent < -149; exponent++) size >>= 1;  // a subnormal result keeps fewer bits
  float result = std::ldexp(static_cast<float>(size), exponent);
  return sum < 0 ? -result : result;
}

}  // namespace

float tensor_core_sum(const float (&a)[16], const float (&b)[16], float c, int smallest_exponent) {
  float plain = c;
  for (int k = 0; k < 16; k++) plain = std::fma(a[k], b[k], plain);
  if (!std::isfinite(plain)) return plain;

  int64_t significands[17];
  int exponents[17], largest = INT32_MIN;
  for (int k = 0; k < 17; k++) {
    int smallest = k < 16 ? smallest_exponent : -126;
    Parts x = parts_of(k < 16 ? a[k] : c, smallest), y = parts_of(k < 16 ? b[k] : 1.0f, smallest);
    // Products of 24 by 24 bits; factors have 8 or 11 that count, and 1 has one, so 48 bits hold all.
    significands[k] = x.significand * y.significand * (x.negative != y.negative ? -1 : 1);
    exponents[k] = x.exponent + y.exponent;
    if (significands[k]) largest = std::max(largest, exponents[k]);
  }
  if (largest == INT32_MIN) return plain;

  int64_t sum = 0;
  for (int k = 0; k < 17; k++) {
    int cut = 46 - kKeptBits + largest - exponents[k];  // significands stand for multiples of 2^(exponent - 46)
    if (significands[k] && cut < 63) sum += significands[k] / (int64_t{1} << cut);  // division cuts towards zero
  }
  return cut_to_float(sum, largest - kKeptBits);
}

}  // namespace simt
