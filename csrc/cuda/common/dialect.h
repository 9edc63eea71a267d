// What kernels may name. nvcc compiles them for a GPU, g++ or clang for the simulator: one source.
//
//                          #include "dialect.h"
//        nvcc -x cu  <----------  kernel.cu  ---------->  g++ -fsanitize=thread
//     dialect_cuda.h: PTX                             ../simt/simt.h: fibers and counters
//
// Rules: include this file and its neighbours only; no inline assembly outside dialect_cuda.h; 16-bit
// numbers are loaded, stored and converted, arithmetic is float32; a multiply and an add that belong
// together are written fmaf, since compilers are set to fuse nothing themselves (-fmad=false,
// -ffp-contract=off): otherwise two kernels with the same formula could round differently.

#pragma once

#ifdef __CUDACC__
#include "dialect_cuda.h"
#else
#include "../../simt/simt.h"
#endif

#include "numbers.h"
