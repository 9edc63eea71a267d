// Plain data about tiles in shared memory, the same on a GPU and in the simulator: swizzles, the shape of a tensor
// map, and the descriptor by which wgmma finds a matrix.
//
// A *swizzle* exchanges pieces of 16 bytes, so that the same column of eight rows lies in different banks:
//
//     address bits   .. 9 8 7 | 6 5 4 | 3 2 1 0        bytes128: bits 6-4 ^= bits 9-7    pattern of 1024 bytes
//                      row     piece                   bytes64:  bits 5-4 ^= bits 8-7               512
//                                                      bytes32:  bit  4   ^= bit  7                 256
//
// The bits are those of the shared address itself, so a tile begins at a multiple of the pattern.
// Source: PTX ISA, "Swizzling modes" and "Matrix descriptor".

#pragma once

#include <cstdint>

enum class Swizzle { none, bytes32, bytes64, bytes128 };  // numbered as CUtensorMapSwizzle

// Bytes of a row that the swizzle permutes; without a swizzle 16.
constexpr int swizzle_span(Swizzle swizzle) { return 16 << static_cast<int>(swizzle); }

// What a tensor copy has to know: a tensor in global memory, dimension 0 dense, and the box that one copy moves.
struct TensorShape {
  const void* base;      // at a multiple of 16 bytes
  int element_bytes;     // 1, 2 or 4
  int rank;              // 2 to 4
  uint64_t dims[4];      // elements; dimension 0 is the innermost
  uint64_t strides[4];   // bytes from one index to the next, multiples of 16; strides[0] is not read
  uint32_t box[4];       // elements, 1 to 256; box[0] * element_bytes is a multiple of 16
  Swizzle swizzle;       // of the box in shared memory; box[0] * element_bytes is at most its span
};

// Where wgmma finds an operand in shared memory.
struct MatrixDescriptor {
  uint64_t bits;
};

// The same matrix `bytes` further on: the next 16 numbers along k.
#ifdef __CUDACC__
__device__ __forceinline__
#else
inline
#endif
MatrixDescriptor advanced(MatrixDescriptor matrix, int bytes) {
  return {matrix.bits + static_cast<uint64_t>(bytes >> 4)};
}
