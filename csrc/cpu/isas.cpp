// The instruction sets this library was built for, and the tests whether this CPU has them.

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace minillm::cpu {

extern const Kernels kernels_generic;
static bool always() { return true; }

#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2;
static bool has_avx512_bf16() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
}
// CPUID leaf 1, bit 29 of ECX: __builtin_cpu_supports of clang 14 has no name for it.
static bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
}
static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
const Isa kIsas[] = {
    {&kernels_avx512, has_avx512_bf16}, {&kernels_avx2, has_avx2}, {&kernels_generic, always}, {nullptr, nullptr}};
#else
const Isa kIsas[] = {{&kernels_generic, always}, {nullptr, nullptr}};
#endif

}  // namespace minillm::cpu
