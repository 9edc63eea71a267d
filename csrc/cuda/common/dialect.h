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

// LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//
// A block has 48 KB of shared memory, its static arrays included. It has more only if the kernel asks before the
// launch. A kernel with dynamic shared memory always asks: the size of its static arrays is not known here.
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                 \
  ((shared_bytes) ? ALLOW_SHARED(kernel, shared_bytes) : static_cast<void>(0), \
   START(kernel, grid, block, shared_bytes, stream, __VA_ARGS__))

#include "numbers.h"
