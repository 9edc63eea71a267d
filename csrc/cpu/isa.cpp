// All kernels, compiled for one instruction set. The build compiles this file once for each: with
// -DMINILLM_ISA_AVX512, with -DMINILLM_ISA_AVX2 or with neither, and with the matching machine flags.

#include "activation.h"
#include "attention.h"
#include "attention_int8.h"
#include "kernels.h"
#include "quantized.h"
#include "routing.h"
#include "rowwise.h"

namespace minillm::cpu {

#if defined(MINILLM_ISA_AVX512)
#define TABLE kernels_avx512
#define NAME "avx512_bf16"
#elif defined(MINILLM_ISA_AVX2)
#define TABLE kernels_avx2
#define NAME "avx2"
#else
#define TABLE kernels_generic
#define NAME "generic"
#endif

extern const Kernels TABLE;
const Kernels TABLE = {NAME,           pack,      embedding, linear,  norm,  gate,         map, add,
                       rope_and_cache, attention, route,     combine, widen, first_highest};

}  // namespace minillm::cpu
