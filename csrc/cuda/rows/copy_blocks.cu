// copy_blocks: block source[i] of the cache becomes block destination[i]; how a fork gets its own copy.
//
//     cache  [ block 0 | block 1 | block 2 | ... ]     one row of blocks of the grid per pair,
//                 \______________^                     16 bytes per thread and round
//
// All pairs run at once: no destination may be another pair's source or destination (two pairs that
// touch one block race, and `check` says so). Limit: memory, 2 bytes moved per byte.

#include "dispatch.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;

template <class Word>
__global__ void __launch_bounds__(kThreads) copy_blocks_kernel(const __grid_constant__ CopyBlocksArgs p) {
  int64_t words = p.block_bytes / sizeof(Word), pair = blockIdx.y;
  const Word* from = static_cast<const Word*>(p.cache) + p.source[pair] * words;
  Word* to = static_cast<Word*>(p.cache) + p.destination[pair] * words;
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < words; i += gridDim.x * kThreads)
    store_wide(to + i, load_wide<Word>(from + i));
}

}  // namespace

void copy_blocks(const CopyBlocksArgs& p, Stream stream) {
  if (p.count == 0 || p.block_bytes == 0) return;
  bool wide = p.block_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(p.cache) % 16 == 0;
  int64_t words = p.block_bytes / (wide ? 16 : 2);
  int per_pair = words > 16 * kThreads ? 16 : static_cast<int>(ceil_div<int64_t>(words, kThreads));
  if (wide)
    LAUNCH((copy_blocks_kernel<Vec<uint32_t, 4>>), dim3(per_pair, p.count), kThreads, 0, stream_of(stream), p);
  else
    LAUNCH((copy_blocks_kernel<Vec<uint16_t, 1>>), dim3(per_pair, p.count), kThreads, 0, stream_of(stream), p);
}

}  // namespace minillm::cuda
