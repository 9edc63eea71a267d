// combine: the weighted sum of each token's expert outputs, one thread per element of the result.
//
//     outputs  [ expert 1: tokens 0 2 | expert 3: tokens 0 1 2 | ... ]     the rows lie expert by expert
//     place      token 0: rows 0, 2      token 1: row 3, ...               where each token's rows are
//
// The sum runs over the token's experts in rising order, in float32, and is rounded once: it does not depend on the
// other tokens of the batch (contract C2). A pair without a row makes its token NaN (group.cu). Bytes: per_token numbers are read and one is written per element. FLOPs:
// 2 * per_token per element. Limit: memory.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ CombineArgs p) {
  int64_t token = blockIdx.x;
  int i = blockIdx.y * kThreads + threadIdx.x;
  if (i >= p.size) return;
  const T* outputs = static_cast<const T*>(p.outputs);
  float sum = 0;
  for (int64_t n = token * p.per_token; n < (token + 1) * p.per_token; n++) {
    int64_t place = p.place[n], row = place > 0 ? place : 0;  // no branch: loads of several experts are under way
    float weight = p.weights[n], output = to_float(outputs[row * p.size + i]);
    sum = fmaf(place < 0 ? NAN : weight, output, sum);
  }
  static_cast<T*>(p.y)[token * p.size + i] = from_float<T>(sum);
}

}  // namespace

void combine(const CombineArgs& p, Stream stream) {
  if (p.rows == 0 || p.size == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(combine_kernel<T>, dim3(p.rows, ceil_div(p.size, kThreads)), kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
