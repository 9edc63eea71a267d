// Memory traffic of a kernel, counted as the hardware serves it: per warp, not per lane.
//
// The n-th execution of one load instruction by the 32 lanes of a warp is *one* access:
//
//     global   bytes: a byte counts once, even if several lanes read it; and sectors of 32 bytes, the
//              smallest unit fetched: 32 neighbouring floats are 4 sectors, floats 32 apart are 32 sectors
//     shared   wavefronts: in one wavefront each of the 32 banks (4 bytes wide) delivers one word
//
//              word   0  1  2 .. 31 | 32 33 ..      lanes that read different words of one bank need several
//              bank   0  1  2 .. 31 |  0  1 ..      wavefronts; the same word goes to all lanes at once
//
// The simulator runs lanes one after another. So accesses are collected by (instruction, number of earlier
// executions by this lane) until the lanes meet. If lanes run a loop a different number of times, the counts assume
// that their first iterations belong together, as in the code a compiler would generate.
//
// The counts are exact for the access pattern. Caches are not modelled.

#include <algorithm>
#include <map>
#include <unordered_map>

#include "machine.h"

namespace simt {
namespace {

bool profiling = false;
std::map<std::string, Counters> profile;
Counters* current = nullptr;

struct WarpAccess {
  uintptr_t address[32];
  uint32_t lanes = 0;
  uint32_t bytes = 0;
  Space space;
  bool write;
  Moved* tensor;  // null in shared memory
};

struct Instruction {
  size_t visits[32] = {};  // executions by each lane since the lanes last met
  std::vector<WarpAccess> accesses;
};

std::unordered_map<uintptr_t, Instruction> instructions;

// The number of different granules (pieces of `granule` bytes) that the lanes access.
uint64_t different(const WarpAccess& a, uintptr_t granule) {
  std::vector<uintptr_t> touched;
  for (int lane = 0; lane < 32; lane++) {
    if (!(a.lanes >> lane & 1)) continue;
    uintptr_t first = a.address[lane] / granule, last = (a.address[lane] + a.bytes - 1) / granule;
    for (uintptr_t piece = first; piece <= last; piece++) touched.push_back(piece);
  }
  std::sort(touched.begin(), touched.end());
  return std::unique(touched.begin(), touched.end()) - touched.begin();
}

// The most different words of a single bank that the lanes [first, end) access.
uint64_t most_words_in_a_bank(const WarpAccess& a, int first, int end) {
  std::vector<uintptr_t> banks[32];
  size_t most = 0;
  for (int lane = first; lane < end; lane++) {
    if (!(a.lanes >> lane & 1)) continue;
    for (uintptr_t word = a.address[lane] / 4; word <= (a.address[lane] + a.bytes - 1) / 4; word++) {
      std::vector<uintptr_t>& bank = banks[word % 32];
      if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      most = std::max(most, bank.size());
    }
  }
  return most;
}

// Accesses of 8 bytes are served half a warp at a time, of 16 bytes a quarter.
uint64_t wavefronts(const WarpAccess& a) {
  int group = a.bytes <= 4 ? 32 : a.bytes <= 8 ? 16 : 8;
  uint64_t sum = 0;
  for (int first = 0; first < 32; first += group) sum += most_words_in_a_bank(a, first, first + group);
  return sum;
}

void settle(const WarpAccess& a) {
  if (a.space == Space::shared) {
    current->shared_accesses++;
    current->shared_wavefronts += wavefronts(a);
    return;
  }
  bool whole = (a.bytes & (a.bytes - 1)) == 0;  // 2, 4, 8 or 16 bytes, aligned: no two lanes overlap in part
  uint64_t bytes = whole ? different(a, a.bytes) * a.bytes : different(a, 1);
  (a.write ? current->global_write_bytes : current->global_read_bytes) += bytes;
  (a.write ? a.tensor->write_bytes : a.tensor->read_bytes) += bytes;
  (a.write ? current->global_write_sectors : current->global_read_sectors) += different(a, 32);
}

void collect(const Location& at, bool write, const void* address, size_t bytes, const void* pc) {
  int lane = machine().running->lane();
  Instruction& instruction = instructions[reinterpret_cast<uintptr_t>(pc) * 2 + write];
  size_t visit = instruction.visits[lane]++;
  if (visit == instruction.accesses.size()) instruction.accesses.emplace_back();
  WarpAccess& a = instruction.accesses[visit];
  a.address[lane] = reinterpret_cast<uintptr_t>(address);
  a.lanes |= 1u << lane;
  a.bytes = bytes;
  a.space = at.space;
  a.write = write;
  a.tensor = at.tensor ? at.tensor->moved : nullptr;
}

}  // namespace

HostCalls& host_calls() {
  static HostCalls calls;
  return calls;
}

void start_profile() {
  host_calls() = {};
  profile.clear();
  current = nullptr;
  profiling = true;
}

std::vector<std::pair<std::string, Counters>> stop_profile() {
  profiling = false;
  current = nullptr;
  return {profile.begin(), profile.end()};
}

void count_launch(const std::string& kernel, uint64_t blocks, uint64_t threads) {
  instructions.clear();
  for (Range& tensor : global_ranges()) tensor.moved = nullptr;
  if (!profiling) return;
  current = &profile[kernel];
  for (Range& tensor : global_ranges()) tensor.moved = &current->tensors[tensor.name];
  current->launches++;
  current->blocks += blocks;
  current->threads += threads;
}

Counters* counters() { return current; }

void count_access(const Location& at, bool write, const void* address, size_t bytes, const void* pc) {
  if (!current) return;
  if (at.space == Space::shared) (write ? current->shared_write_bytes : current->shared_read_bytes) += bytes;
  collect(at, write, address, bytes, pc);
}

void flush_warp() {
  if (!current) return;
  for (auto& [pc, instruction] : instructions) {
    for (const WarpAccess& a : instruction.accesses) settle(a);
    instruction.accesses.clear();
    std::fill(instruction.visits, instruction.visits + 32, 0);
  }
}

}  // namespace simt
