// gather_codes: rows of a quantised table by number, for the embedding (gather.cu, codes.h).
//
//     ids    [ 7 | 2 ]        y   [ scale * number + minimum of output 7 | ... of output 2 ]        one block per row
//
// The scale is applied before the minimum is added, and each step is rounded. An embedding may then be scaled, and have
// learned positions added, as in `gather`. A number of a row that does not exist is NaN.
//
// Bytes: a line of 64 for every 8 (4) inputs, of which one output's word is used; a step has few rows, so this is little
// beside the head's product. Limit: memory.

#include "codes.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

struct CodesGatherArgs {
  GatherArgs p;
  CodesView w;
};

template <int kBits>
__device__ __forceinline__ float weight_of(const CodesView& w, const char* block, int output, int k) {
  int line = k / kLineInputs<kBits>, g = line / w.lines_in_group;
  uint32_t word = w.word(block, g, line % w.lines_in_group, output);
  float weight = number_of<kBits>(w.codes, code_in<kBits>(word, k % kLineInputs<kBits>)) * w.scale(block, g, output);
  return w.minimum ? weight + w.minimum_of(block, g, output) : weight;
}

template <int kBits, class T>
__global__ void __launch_bounds__(kThreads) gather_codes_kernel(const __grid_constant__ CodesGatherArgs a) {
  const GatherArgs& p = a.p;
  int64_t row = blockIdx.x, id = p.ids[row];
  bool exists = id >= 0 && id < p.table_rows;
  const char* block = a.w.block_of(exists ? id : 0);
  const T* added = p.positions ? static_cast<const T*>(p.positions) + p.position_ids[row] * p.size : nullptr;
  T* to = static_cast<T*>(p.y) + row * p.size;
  for (int k = threadIdx.x; k < p.size; k += kThreads) {
    int i = a.w.order ? a.w.order[k] : k;
    T value = from_float<T>(exists ? weight_of<kBits>(a.w, block, static_cast<int>(id % 16), k) : NAN);
    if (p.scale != 1.0f) value = from_float<T>(to_float(value) * p.scale);
    if (added) value = from_float<T>(to_float(value) + to_float(added[i]));
    to[i] = value;
  }
}

}  // namespace

void gather_codes(const GatherArgs& p, Stream stream) {
  if (p.rows == 0) return;
  const CodesGatherArgs args = {p, CodesView(p.table, p.form, p.size)};
  with_bits_and_type(p.form.codes, p.dtype, [&](auto bits, auto zero) {
    LAUNCH((gather_codes_kernel<decltype(bits)::value, decltype(zero)>), p.rows, kThreads, 0, stream_of(stream), args);
  });
}

}  // namespace minillm::cuda
