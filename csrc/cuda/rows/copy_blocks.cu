// copy_blocks: copies block source[i] of the cache to block destination[i]. A forked sequence gets its own copy
// of a shared block this way.
//
//     cache  [ block 0 | block 1 | block 2 | ... ]     blockIdx.x is the pair (grid.y would end at 65,535);
//                 \______________^                     16 bytes per thread and iteration
//
// All pairs run at once, so no destination may be the source or destination of another pair: two such pairs
// race (`check` reports it). Limit: memory; each byte is read once and written once.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

template <class Word>
__global__ void __launch_bounds__(kThreads) copy_blocks_kernel(const __grid_constant__ CopyBlocksArgs p) {
  int64_t words = p.block_bytes / sizeof(Word), pair = blockIdx.x;
  const Word* from = static_cast<const Word*>(p.cache) + p.source[pair] * words;
  Word* to = static_cast<Word*>(p.cache) + p.destination[pair] * words;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < words; i += gridDim.y * kThreads)
    store_wide(to + i, load_wide<Word>(from + i));
}

}  // namespace

void copy_blocks(const CopyBlocksArgs& p, Stream stream) {
  if (p.count == 0 || p.block_bytes == 0) return;
  bool wide = p.block_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(p.cache) % 16 == 0;
  int64_t words = p.block_bytes / (wide ? 16 : 2);
  int per_pair = words > 16 * kThreads ? 16 : static_cast<int>(ceil_div<int64_t>(words, kThreads));
  if (wide)
    LAUNCH((copy_blocks_kernel<Vec<uint32_t, 4>>), dim3(p.count, per_pair), kThreads, 0, stream_of(stream), p);
  else
    LAUNCH((copy_blocks_kernel<Vec<uint16_t, 1>>), dim3(p.count, per_pair), kThreads, 0, stream_of(stream), p);
}

}  // namespace minillm::cuda
