// map: a sum of two tensors, or a tensor times or divided by a number; one thread per element.
//
// Few families need them: Granite scales what a layer adds and divides logits, and layers without a norm before the
// next part only add. Bytes: one or two numbers are read and one is written. Limit: memory.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, Map kMap>
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ MapArgs p) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.count) return;
  float x = to_float(static_cast<const T*>(p.x)[i]);
  if constexpr (kMap == Map::multiply) x *= p.number;
  if constexpr (kMap == Map::divide) x /= p.number;
  if constexpr (kMap == Map::add) x += to_float(static_cast<const T*>(p.other)[i]);
  static_cast<T*>(p.y)[i] = from_float<T>(x);
}

template <Map kMap>
void launch(const MapArgs& p, Stream stream) {
  if (p.count == 0) return;
  with_number_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    LAUNCH((map_kernel<T, kMap>), static_cast<unsigned>(ceil_div<int64_t>(p.count, kThreads)), kThreads, 0,
           stream_of(stream), p);
  });
}

}  // namespace

void map(Map map, const MapArgs& p, Stream stream) {
  switch (map) {
    case Map::multiply: return launch<Map::multiply>(p, stream);
    case Map::divide: return launch<Map::divide>(p, stream);
    case Map::add: return launch<Map::add>(p, stream);
  }
}

}  // namespace minillm::cuda
