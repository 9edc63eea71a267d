// Race detection (only with `check`, since it costs a lookup for each byte).
//
// Two accesses to one byte, at least one of them a write, race unless something orders them:
//
//     the same thread                      program order
//     the same block, different warps      a __syncthreads between them      (Machine::barriers grew)
//     the same warp                        the same, or a __syncwarp         (Machine::warp_syncs grew)
//     different blocks                     nothing orders them
//
// So a cell (one byte) needs only three counters instead of a vector clock. A cell stores its last write. Of the
// reads since the last barrier it stores the lanes of the latest warp, and whether another warp or block read too:
// enough to decide whether a write conflicts. The counters decide, not the order of events, so a race is found in
// whatever order the threads ran.
//
// After Flanagan & Freund, "FastTrack" (PLDI 2009). Left out: atomics, which the dialect does not have.

#include <memory>
#include <unordered_map>

#include "machine.h"

namespace simt {
namespace {

struct Access {
  const void* pc = nullptr;
  uint32_t block = 0;  // serial number; 0: no access yet
  uint32_t barriers = 0, warp_syncs = 0;
  uint32_t lanes = 0;  // one bit per lane
  uint16_t warp = 0;
  bool other_warps = false, other_blocks = false;
};

struct Cell {
  Access write, read;
  const void* copy = nullptr;  // an asynchronous copy to here was issued and not waited for
};

constexpr size_t kPage = 4096;
using Page = std::unique_ptr<Cell[]>;
std::unordered_map<uintptr_t, Page> pages;

Cell& cell(uintptr_t address) {
  static uintptr_t last = ~uintptr_t{0};
  static Cell* cells = nullptr;
  if (pages.empty()) last = ~uintptr_t{0};
  if (address / kPage != last) {
    last = address / kPage;
    Page& page = pages[last];
    if (!page) page.reset(new Cell[kPage]);
    cells = page.get();
  }
  return cells[address % kPage];
}

Access now(const void* pc) {
  const Machine& m = machine();
  const Thread& t = *m.running;
  return {pc, m.block_serial, m.barriers, m.warp_syncs[t.warp()], 1u << t.lane(), static_cast<uint16_t>(t.warp())};
}

// An earlier block's accesses to shared memory do not count: shared memory begins anew with each block.
bool is_live(const Access& a, Space space, const Access& here) {
  return a.block && (a.block == here.block || space == Space::global);
}

bool ordered(const Access& a, const Access& here) {
  if (a.block != here.block || a.other_blocks) return false;
  if (a.barriers < here.barriers) return true;
  if (a.warp != here.warp || a.other_warps) return false;
  return a.warp_syncs < here.warp_syncs || a.lanes == here.lanes;
}

// The first thread of an access; of several lanes of the warp of `here` one that is not `here`.
std::string name_of(const Access& a, const Access& here) {
  const dim3& size = machine().block_size;
  bool with_others = a.block == here.block && a.warp == here.warp && (a.lanes & ~here.lanes);
  unsigned rank = a.warp * 32 + __builtin_ctz(with_others ? a.lanes & ~here.lanes : a.lanes);
  std::string thread = std::to_string(rank % size.x);
  if (size.y * size.z > 1)
    thread = "(" + thread + ", " + std::to_string(rank / size.x % size.y) + ", " + std::to_string(rank / size.x / size.y) + ")";
  return "thread " + thread + (a.block == machine().block_serial ? "" : " of another block");
}

[[noreturn]] void race(const void* address, const char* verb, const Access& here, const char* other_verb, const Access& other) {
  fail("race", name_of(here, here) + " " + verb + " " + describe(address) + ", nothing orders it after the other access",
       {nullptr, 0, here.pc}, name_of(other, here) + " " + other_verb + " it", {nullptr, 0, other.pc});
}

void note_read(Access& read, const Access& here) {
  bool other_blocks = read.other_blocks || (read.block && read.block != here.block);
  if (read.block != here.block || read.barriers != here.barriers) {
    read = here;
    read.other_blocks = other_blocks;
  } else if (read.warp != here.warp) {
    read = here;
    read.other_blocks = other_blocks;
    read.other_warps = true;
  } else if (read.warp_syncs != here.warp_syncs) {
    read.lanes = here.lanes, read.warp_syncs = here.warp_syncs, read.pc = here.pc;
  } else {
    read.lanes |= here.lanes;
  }
}

}  // namespace

void begin_launch_races() { pages.clear(); }

void check_read(Space space, const void* address, size_t bytes, const void* pc) {
  Access here = now(pc);
  for (size_t i = 0; i < bytes; i++) {
    const char* byte = static_cast<const char*>(address) + i;
    Cell& c = cell(reinterpret_cast<uintptr_t>(byte));
    bool written = is_live(c.write, space, here);
    if (c.copy) fail("copy not waited for", "reads " + describe(byte), {nullptr, 0, pc}, "the copy was issued", {nullptr, 0, c.copy});
    if (space == Space::shared && !written)
      fail("uninitialised", "reads " + describe(byte) + ", which this block has not written", {nullptr, 0, pc});
    if (written && !ordered(c.write, here)) race(byte, "reads", here, "wrote", c.write);
    if (space == Space::shared && c.read.block != here.block) c.read = {};
    note_read(c.read, here);
  }
}

void check_write(Space space, const void* address, size_t bytes, const void* pc) {
  Access here = now(pc);
  for (size_t i = 0; i < bytes; i++) {
    const char* byte = static_cast<const char*>(address) + i;
    Cell& c = cell(reinterpret_cast<uintptr_t>(byte));
    if (c.copy) fail("copy not waited for", "writes " + describe(byte), {nullptr, 0, pc}, "the copy was issued", {nullptr, 0, c.copy});
    if (is_live(c.write, space, here) && !ordered(c.write, here)) race(byte, "writes", here, "wrote", c.write);
    if (is_live(c.read, space, here) && !ordered(c.read, here)) race(byte, "writes", here, "read", c.read);
    c.write = here;
  }
}

void mark_copy(const void* to, size_t bytes, const void* pc) {
  for (size_t i = 0; i < bytes; i++) cell(reinterpret_cast<uintptr_t>(to) + i).copy = pc;
}

void unmark_copy(const void* to, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) cell(reinterpret_cast<uintptr_t>(to) + i).copy = nullptr;
}

}  // namespace simt
