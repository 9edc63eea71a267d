// Which paths this library has, and which of them this processor can run.

#include "kernels.h"

namespace minillm {

extern const Kernels kernels_generic;
static bool always() { return true; }

#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2;
static bool has_avx512_bf16() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
}
static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
const Path kPaths[] = {
    {&kernels_avx512, has_avx512_bf16}, {&kernels_avx2, has_avx2}, {&kernels_generic, always}, {nullptr, nullptr}};
#else
const Path kPaths[] = {{&kernels_generic, always}, {nullptr, nullptr}};
#endif

}  // namespace minillm
