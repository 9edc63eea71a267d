// A C entry point to the products of int8 matrices with float32 activations, on one thread.
// test_native_quantized_mutants.py compiles it beside changed copies of the headers.

#include "quantized.h"

namespace minillm::cpu {

void parallel_ranges(int64_t begin, int64_t end, int64_t, RangeBody body, void* context) { body(begin, end, context); }
int64_t (*thread_count)() = [] { return int64_t{1}; };

// `packed`: header, order, blocks (codes_layout.h).
extern "C" __attribute__((visibility("default"))) void multiply(const float* x, const char* packed, float* y,
                                                                int64_t rows) {
  const auto header = load_as<CodesHeader>(packed);
  const auto* order = reinterpret_cast<const int32_t*>(packed + kLine);
  const Form form = {Codes::int8, header.group, header.wide != 0, header.minimum != 0, header.int8_x != 0,
                     header.ordered ? order : nullptr};
  const char* blocks = packed + kLine + order_bytes(header.in, header.ordered);
  quant_codes<Codes::int8, float>({.x = x, .x_stride = header.in, .weight = {blocks, DType::f32, nullptr, form}, .y = y,
                                   .rows = rows, .out = header.out, .in = header.in, .dtype = DType::f32,
                                   .prefetch_next = nullptr});
}

}  // namespace minillm::cpu
