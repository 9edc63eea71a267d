// finite_rows: which rows of logits have neither NaN nor infinity. A row that has one is never sampled from.
//
// One block per row. A number is finite if the bits of its exponent are not all set, which a comparison says:
// |x| <= the largest float32 is false for infinity and for NaN. A row begins at any element, so the elements
// before the first multiple of 16 bytes, and those after the last, are read one by one.
//
//     row    | . . x x x x x x x x | x x x x x x x x | x x x . . . . . |      16 bytes between two bars
//                '-- one by one -'   '--- at once ---'   '- one by one
//
// Bytes: the row once. Limit: the loads that one SM has in flight, for a row is one block; more rows use more SMs.
// Left out: several blocks per row. They would need a second launch, since no block waits for another.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 512;
constexpr float kLargest = 3.4028234663852886e38f;  // of float32, and so of every type here

__device__ __forceinline__ bool is_finite(float x) { return x <= kLargest && x >= -kLargest; }

// Whether all threads of the block found their part finite. All threads must call it; thread 0 gets the answer.
__device__ __forceinline__ bool all_finite(bool mine) {
  SHARED(int, found, [kThreads / 32]);
  int broken = !mine;
  for (int step = 16; step > 0; step /= 2) broken |= __shfl_xor_sync(0xffffffff, broken, step);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = broken;
  __syncthreads();
  broken = 0;
  for (int warp = 0; warp < kThreads / 32; warp++) broken |= found[warp];
  return !broken;
}

template <class T>
__global__ void __launch_bounds__(kThreads) finite_kernel(const __grid_constant__ FiniteArgs p) {
  constexpr int kWide = 16 / sizeof(T);
  const T* row = static_cast<const T*>(p.logits) + static_cast<int64_t>(blockIdx.x) * p.size;
  int before = static_cast<int>((16 - reinterpret_cast<uintptr_t>(row) % 16) % 16 / sizeof(T));
  int head = min(before, p.size), groups = (p.size - head) / kWide;
  bool finite = true;
  for (int group = threadIdx.x; group < groups; group += kThreads) {
    auto numbers = load_wide<Vec<T, kWide>>(row + head + group * kWide);
    UNROLL
    for (int i = 0; i < kWide; i++) finite &= is_finite(to_float(numbers.v[i]));
  }
  for (int i = threadIdx.x; i < head; i += kThreads) finite &= is_finite(to_float(row[i]));
  for (int i = head + groups * kWide + threadIdx.x; i < p.size; i += kThreads) finite &= is_finite(to_float(row[i]));
  finite = all_finite(finite);
  if (threadIdx.x == 0) p.finite[blockIdx.x] = finite;
}

}  // namespace

void finite_rows(const FiniteArgs& p, Stream stream) {
  if (p.rows == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH(finite_kernel<T>, p.rows, kThreads, 0, stream_of(stream), p);
  });
}

}  // namespace minillm::cuda
