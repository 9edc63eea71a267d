// C entry points to the kernels of layers with experts, in float32 or bfloat16. test_expert_mutants.py compiles it together with
// a changed copy of a kernel: -DKERNEL="group.cu" -DIS_GROUP

#include KERNEL

using namespace minillm::cuda;
using minillm::DType;

#if defined(IS_GROUP)
extern "C" void run(const int64_t* chosen, int* starts, int64_t* order, int64_t* place, int pairs, int per_token,
                    int num_experts) {
  group({chosen, starts, order, place, pairs, per_token, num_experts}, nullptr);
}
#elif defined(IS_LINEAR_EXPERTS)
extern "C" void run(const float* x, const float* weight, const float* bias, float* y, const int* starts, int rows, int in,
                    int out, int num_experts, int pitch) {
  linear_experts({{x, weight, bias, y, rows, in, out, DType::f32}, starts, num_experts, pitch}, nullptr);
}
extern "C" void run_linear(const float* x, const float* weight, const float* bias, float* y, int rows, int in, int out) {
  linear_l2({x, weight, bias, y, rows, in, out, DType::f32}, nullptr);
}
#elif defined(IS_LINEAR_L5_EXPERTS)  // bfloat16 in, float32 out
extern "C" void run(const bfloat16* x, const bfloat16* weight, const bfloat16* bias, float* y, const int* starts, int rows,
                    int in, int out, int num_experts, int pitch) {
  linear_l5_experts({{x, weight, bias, y, rows, in, out, DType::bf16, true}, starts, num_experts, pitch}, nullptr);
}
extern "C" void run_linear(const bfloat16* x, const bfloat16* weight, const bfloat16* bias, float* y, int rows, int in,
                           int out) {
  linear_l5({x, weight, bias, y, rows, in, out, DType::bf16, true}, nullptr);
}
#elif defined(IS_COMBINE)
extern "C" void run(const float* outputs, const float* weights, const int64_t* place, float* y, int rows, int size,
                    int per_token) {
  combine({outputs, weights, place, y, rows, size, per_token, DType::f32}, nullptr);
}
#endif
