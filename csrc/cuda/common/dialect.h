// The words that kernels may use. nvcc compiles a kernel for a GPU, g++ or clang compiles it for the simulator:
// one source.
//
//                          #include "dialect.h"
//        nvcc -x cu  <----------  kernel.cu  ---------->  g++ -fsanitize=thread
//     dialect_cuda.h: PTX                             ../simt/simt.h: fibers and counters
//
// Rules for a kernel:
//   - Include only this file and other headers of csrc/cuda.
//   - No inline assembly outside dialect_cuda.h.
//   - Load, store and convert 16-bit numbers; compute in float32.
//   - Write a fused multiply-add as fmaf. The compilers fuse nothing themselves (-fmad=false,
//     -ffp-contract=off): otherwise two kernels with the same formula could round differently.

#pragma once

#ifdef __CUDACC__
#include "dialect_cuda.h"
#else
#include "../../simt/simt.h"
#endif

#include "numbers.h"
