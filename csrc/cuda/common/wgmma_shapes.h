// The shapes of wgmma: one instruction for each type, source of a and number of columns, since its text names every
// register. Only dialect_hopper.h includes this.
//
//     wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {c 0..31}, {a 0..3} or a, b, sum, 1, 1, transposed..;
//
// The operand `sum` says that the product is added to c. PTX ISA: wgmma.mma_async.

#pragma once

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define REGISTERS_8(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3]), "+f"(c[n + 1][0]), "+f"(c[n + 1][1]), \
                       "+f"(c[n + 1][2]), "+f"(c[n + 1][3])
#define REGISTERS_32(n) REGISTERS_8(n), REGISTERS_8(n + 2), REGISTERS_8(n + 4), REGISTERS_8(n + 6)
#define NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// `columns` of c in `names` and `registers`; then a, b, the sum and the transpositions, numbered from the first
// register after c.
#define WGMMA_REGISTERS(columns, type, names, registers, a0, a1, a2, a3, b, sum, turned)                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #sum ", 0;\n"                                                    \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" names "}, {%" #a0 ", %" #a1   \
               ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, %" #turned ";\n}"                                            \
               : registers                                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_matrix), "r"(1), "n"(kTurned ? 1 : 0))
#define WGMMA_MATRICES(columns, type, names, registers, a, b, sum, turned_a, turned_b)                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #sum ", 0;\n"                                                    \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" names "}, %" #a ", %" #b      \
               ", p, 1, 1, %" #turned_a ", %" #turned_b ";\n}"                                                        \
               : registers                                                                                           \
               : "l"(a_matrix), "l"(b_matrix), "r"(1), "n"(kTurnedA ? 1 : 0), "n"(kTurnedB ? 1 : 0))

template <class T>
constexpr bool kIsBf16 = std::is_same_v<T, __nv_bfloat16>;

template <class T, bool kTurned>
__device__ __forceinline__ void wgmma_shape(float (&c)[8][4], const uint32_t* a, uint64_t b_matrix) {
  if constexpr (kIsBf16<T>)
    WGMMA_REGISTERS(64, "bf16", NAMES_32, REGISTERS_32(0), 32, 33, 34, 35, 36, 37, 38);
  else
    WGMMA_REGISTERS(64, "f16", NAMES_32, REGISTERS_32(0), 32, 33, 34, 35, 36, 37, 38);
}

#define REGISTERS_64 REGISTERS_32(0), REGISTERS_32(8)

template <class T, bool kTurned>
__device__ __forceinline__ void wgmma_shape(float (&c)[16][4], const uint32_t* a, uint64_t b_matrix) {
  if constexpr (kIsBf16<T>)
    WGMMA_REGISTERS(128, "bf16", NAMES_64, REGISTERS_64, 64, 65, 66, 67, 68, 69, 70);
  else
    WGMMA_REGISTERS(128, "f16", NAMES_64, REGISTERS_64, 64, 65, 66, 67, 68, 69, 70);
}

template <class T, bool kTurnedA, bool kTurnedB>
__device__ __forceinline__ void wgmma_shape(float (&c)[8][4], uint64_t a_matrix, uint64_t b_matrix) {
  if constexpr (kIsBf16<T>)
    WGMMA_MATRICES(64, "bf16", NAMES_32, REGISTERS_32(0), 32, 33, 34, 35, 36);
  else
    WGMMA_MATRICES(64, "f16", NAMES_32, REGISTERS_32(0), 32, 33, 34, 35, 36);
}

template <class T, bool kTurnedA, bool kTurnedB>
__device__ __forceinline__ void wgmma_shape(float (&c)[16][4], uint64_t a_matrix, uint64_t b_matrix) {
  if constexpr (kIsBf16<T>)
    WGMMA_MATRICES(128, "bf16", NAMES_64, REGISTERS_64, 64, 65, 66, 67, 68);
  else
    WGMMA_MATRICES(128, "f16", NAMES_64, REGISTERS_64, 64, 65, 66, 67, 68);
}

#endif
