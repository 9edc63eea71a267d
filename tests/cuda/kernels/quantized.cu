// C entry points to the kernels of quantised matrices, in float32. test_quantized_mutants.py compiles it together with a
// changed copy of a kernel: -DKERNEL="linear_q1.cu" -DIS_LINEAR

#include KERNEL

using namespace minillm::cuda;
using minillm::Codes;
using minillm::DType;
using minillm::Form;

// `blocks` begin after the header and the order.
static Form form_of(int codes, int group, int wide, int minimum, int int8_x, int ordered, const int* order) {
  return {static_cast<Codes>(codes), group, wide != 0, minimum != 0, int8_x != 0, ordered ? order : nullptr};
}

#if defined(IS_LINEAR)
extern "C" void run(const float* x, const char* blocks, const int* order, const float* bias, float* y, int rows, int in,
                    int out, int codes, int group, int wide, int minimum, int int8_x, int ordered) {
  linear_q1({x, blocks, bias, y, rows, in, out, DType::f32, false, form_of(codes, group, wide, minimum, int8_x, ordered, order)},
            nullptr);
}
extern "C" void run_experts(const float* x, const char* blocks, const int* order, const float* bias, float* y, int rows,
                            int in, int out, int codes, int group, int wide, int minimum, int int8_x, int ordered, const int* starts,
                            int num_experts, int pitch) {
  const LinearArgs p = {x, blocks, bias, y, rows, in, out, DType::f32, false,
                        form_of(codes, group, wide, minimum, int8_x, ordered, order)};
  linear_q1_experts({p, starts, num_experts, pitch}, nullptr);
}
#else
extern "C" void run(const int64_t* ids, const char* blocks, const int* order, const float* positions,
                    const int64_t* position_ids, float* y, int rows, int in, int out, int codes, int group, int wide,
                    int minimum, int int8_x, int ordered, float scale) {
  gather_codes({blocks, ids, positions, position_ids, y, rows, in, scale, DType::f32,
                form_of(codes, group, wide, minimum, int8_x, ordered, order), out},
               nullptr);
}
#endif
