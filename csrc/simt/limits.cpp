// What a chip refuses to launch: the limits of sm_80 and sm_90. The simulator refuses the same.
//
//     block       x and y up to 1024, z up to 64, 1024 threads in all
//     grid        x up to 2^31 - 1, y and z up to 65535, none of them 0
//     shared      48 KB, static arrays included; up to 227 KB if the kernel asked before the launch (ALLOW_SHARED)
//     registers   65,536 in a multiprocessor, 16,384 for each fourth warp
//
// sm_80 has 163 KB in place of 227. Registers are chosen by ptxas, so they are checked only for kernels whose number
// was given (set_registers). A static array that no thread declares is not counted here; a GPU counts it.
//
// Stricter than a chip: a block is whole warps.
// Source: CUDA C++ Programming Guide, Compute Capabilities; the allocation of registers is the occupancy calculator's.

#include "machine.h"

namespace simt {
namespace {

constexpr unsigned kMostThreads = 1024, kMostThreadsZ = 64;
constexpr unsigned kMostBlocks = 0x7FFFFFFF, kMostBlocksYZ = 65535;
constexpr unsigned kQuarterRegisters = 65536 / 4;
constexpr size_t kUnasked = 48 << 10, kAsked = 227 << 10;

std::map<std::string, size_t> allowed;  // by the kernel's name and file in its launch

std::string text(uint64_t number) { return std::to_string(number); }

std::string wrong_block(dim3 block) {
  if (!block.x || !block.y || !block.z) return "the block is empty: each of its dimensions is 1 or more";
  if (block.x > kMostThreads || block.y > kMostThreads) return "block.x and block.y end at " + text(kMostThreads);
  if (block.z > kMostThreadsZ) return "block.z ends at " + text(kMostThreadsZ) + ", this is " + text(block.z);
  unsigned threads = block.x * block.y * block.z;
  if (threads > kMostThreads) return "a block has 1 to " + text(kMostThreads) + " threads, not " + text(threads);
  if (threads % 32) return "a block is whole warps: " + text(threads) + " threads is no multiple of 32";
  return "";
}

std::string wrong_grid(dim3 grid) {
  if (!grid.x || !grid.y || !grid.z) return "the grid is empty: launch nothing instead";
  if (grid.x > kMostBlocks) return "grid.x ends at " + text(kMostBlocks) + ", this is " + text(grid.x);
  for (unsigned size : {grid.y, grid.z})
    if (size > kMostBlocksYZ) return "grid.y and grid.z end at " + text(kMostBlocksYZ) + ", this is " + text(size);
  return "";
}

// A quarter of the multiprocessor runs each fourth warp of a block. A thread's registers come in eights.
std::string wrong_registers(const std::string& kernel, dim3 block) {
  auto found = machine().registers.find(kernel);
  if (found == machine().registers.end()) return "";
  unsigned threads = block.x * block.y * block.z, warps = threads / 32;
  uint64_t of_warp = (found->second + 7) / 8 * 8 * 32;
  if ((warps + 3) / 4 * of_warp <= kQuarterRegisters) return "";
  return text(threads) + " threads of " + text(found->second) + " registers: a multiprocessor has " +
         text(4 * kQuarterRegisters);
}

}  // namespace

void allow_shared(const char* kernel, size_t bytes, Where where) { allowed[where.file + std::string(kernel)] = bytes; }

size_t asked_for(const char* kernel, Where where) {
  auto found = allowed.find(where.file + std::string(kernel));
  return found == allowed.end() ? 0 : found->second;
}

bool too_many_arrays(size_t static_bytes) { return static_bytes > kUnasked; }

std::string wrong_shared(size_t static_bytes) {
  size_t dynamic = machine().dynamic_bytes, all = static_bytes + dynamic;
  size_t limit = dynamic && machine().asked_bytes >= dynamic ? kAsked : kUnasked;
  if (!too_many_arrays(static_bytes) && all <= limit) return "";
  std::string have = text(static_bytes) + " bytes of shared arrays and " + text(dynamic) + " of dynamic shared memory: ";
  if (too_many_arrays(static_bytes)) return have + "arrays end at " + text(kUnasked);
  if (all > kAsked) return have + "a block has " + text(kAsked);
  return have + "a block has " + text(kUnasked) + ", and more only if its kernel asks before the launch (ALLOW_SHARED)";
}

std::string wrong_launch(const std::string& kernel, dim3 grid, dim3 block) {
  for (const std::string& wrong : {wrong_block(block), wrong_grid(grid), wrong_shared(0)})
    if (!wrong.empty()) return wrong;
  return wrong_registers(kernel, block);
}

}  // namespace simt
