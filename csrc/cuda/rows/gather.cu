// gather: rows of a table by number, for the embedding and for the rows of a pass that need logits.
//
//     ids    [ 7 | 2 | 7 ]        y   [ table[7] | table[2] | table[7] ]        one block per row
//
// An embedding may be scaled (Gemma) and have learned positions added (GPT-2). Each step is rounded, as if the ops had
// run one after the other. Bytes: each number is read once and written once. Limit: memory.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherArgs p) {
  int64_t row = blockIdx.x;
  const T* from = static_cast<const T*>(p.table) + p.ids[row] * p.size;
  const T* added = p.positions ? static_cast<const T*>(p.positions) + p.position_ids[row] * p.size : nullptr;
  T* to = static_cast<T*>(p.y) + row * p.size;
  for (int i = threadIdx.x; i < p.size; i += kThreads) {
    T value = from[i];
    if (p.scale != 1.0f) value = from_float<T>(to_float(value) * p.scale);
    if (added) value = from_float<T>(to_float(value) + to_float(added[i]));
    to[i] = value;
  }
}

}  // namespace

void gather(const GatherArgs& p, Stream stream) {
  if (p.rows == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(gather_kernel<T>, p.rows, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
