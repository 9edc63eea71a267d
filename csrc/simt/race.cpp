// Race detection (only with `check`, since it costs a lookup for each byte).
//
// Two accesses to one byte, at least one of them a write, race unless something orders them:
//
//     the same thread                      program order
//     the same block                       a __syncthreads between them               (Machine::barriers grew)
//     the same block, by a barrier of      the second thread knows the first up to    (clocks.cpp)
//     some threads, or a __syncwarp        that moment
//     different blocks                     nothing orders them
//
// A cell (one byte) stores its last write, and the reads since then that nothing orders before the latest one: mostly
// one record, with a bit for each lane of a warp. The counters decide, not the order of events: a race is found in
// whatever order the threads ran.
//
// Copies and tensor cores make accesses too, as agents: their ranks follow those of the threads (agents.cpp). They
// reach shared memory by another way, the async proxy. What a thread wrote is there only after its fence.
//
// After Flanagan & Freund, "FastTrack" (PLDI 2009). Left out: atomics, which the dialect does not have.

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <utility>

#include "machine.h"

namespace simt {
namespace {

struct Access {
  const void* pc = nullptr;
  uint32_t block = 0;  // serial number; 0: no access yet
  uint32_t barriers = 0, moment = 0;
  uint32_t lanes = 0;  // one bit per lane
  uint32_t warp = 0;
  uint32_t fences = 0;  // proxy fences that the thread had run
};

struct Cell {
  Access write, read;
  std::vector<Access> other_reads;  // by other warps, or at other moments; of other blocks only one
  const void* copy = nullptr;  // an asynchronous copy to here was issued and not waited for
};

constexpr size_t kPage = 4096;
using Page = std::unique_ptr<Cell[]>;
std::unordered_map<uintptr_t, Page> pages;

// Shared bytes that a wgmma under way may read.
struct Operand {
  unsigned uses = 0;
  const void* pc = nullptr;
};
std::unordered_map<uintptr_t, Operand> operands;

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
  return {pc, m.block_serial, m.barriers, moment(), 1u << t.lane(), static_cast<uint32_t>(t.warp()), t.proxy_fences};
}

Access by_agent(unsigned rank, uint32_t moment, const void* pc) {
  const Machine& m = machine();
  return {pc, m.block_serial, m.barriers, moment, 1u << rank % 32, rank / 32, 0};
}

unsigned first_rank(const Access& a) { return a.warp * 32 + __builtin_ctz(a.lanes); }

// An earlier block's accesses to shared memory do not count: shared memory begins anew with each block.
bool is_live(const Access& a, Space space, const Access& here) {
  return a.block && (a.block == here.block || space == Space::global);
}

// Whether all lanes of `a` come before `here`, an access of the running thread.
bool ordered(const Access& a, const Access& here) {
  if (a.block != here.block) return false;
  if (a.barriers < here.barriers) return true;
  if (a.warp == here.warp && a.lanes == here.lanes) return true;
  for (uint32_t lanes = a.lanes; lanes; lanes &= lanes - 1)
    if (!knows(a.warp * 32 + __builtin_ctz(lanes), a.moment)) return false;
  return true;
}

// The first thread of an access; of several lanes of the warp of `here` one that is not `here`.
std::string name_of(const Access& a, const Access& here) {
  if (a.block == machine().block_serial && is_agent(first_rank(a))) return agent_name(first_rank(a));
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

bool together(const Access& a, const Access& b) {
  return a.warp == b.warp && a.moment == b.moment && a.barriers == b.barriers && a.block == b.block;
}

// Keeps the record that `here` belongs to in front: the lanes of a warp read one after another.
void note_read(Cell& c, const Access& here) {
  if (together(c.read, here)) {
    c.read.lanes |= here.lanes;
    return;
  }
  Access before = std::exchange(c.read, here);
  auto past = [&](const Access& a) { return ordered(a, here); };
  c.other_reads.erase(std::remove_if(c.other_reads.begin(), c.other_reads.end(), past), c.other_reads.end());
  auto mine = std::find_if(c.other_reads.begin(), c.other_reads.end(), [&](const Access& a) { return together(a, here); });
  if (mine != c.other_reads.end()) {
    c.read.lanes |= mine->lanes;
    c.other_reads.erase(mine);
  }
  auto foreign = [&](const Access& a) { return a.block != here.block; };
  bool enough = foreign(before) && std::any_of(c.other_reads.begin(), c.other_reads.end(), foreign);
  if (before.block && !enough && !past(before)) c.other_reads.push_back(before);
}

void forget_reads(Cell& c) {
  c.read = {};
  c.other_reads.clear();
}

// What `here` reads is there, and nothing writes it meanwhile.
void require_written(const Cell& c, Space space, const char* byte, const Access& here) {
  bool written = is_live(c.write, space, here);
  if (c.copy) fail("copy not waited for", "reads " + describe(byte), {nullptr, 0, here.pc}, "the copy was issued", {nullptr, 0, c.copy});
  if (space == Space::shared && !written)
    fail("uninitialised", "reads " + describe(byte) + ", which this block has not written", {nullptr, 0, here.pc});
  if (written && !ordered(c.write, here)) race(byte, "reads", here, "wrote", c.write);
}

void require_no_operand(const char* byte, const Access& here) {
  auto use = operands.find(reinterpret_cast<uintptr_t>(byte));
  if (use == operands.end()) return;
  fail("wgmma not waited for", name_of(here, here) + " writes " + describe(byte), {nullptr, 0, here.pc},
       "a wgmma that may still read it was issued", {nullptr, 0, use->second.pc});
}

}  // namespace

void begin_launch_races() { pages.clear(); }

void check_read(Space space, const void* address, size_t bytes, const void* pc) {
  Access here = now(pc);
  for (size_t i = 0; i < bytes; i++) {
    const char* byte = static_cast<const char*>(address) + i;
    Cell& c = cell(reinterpret_cast<uintptr_t>(byte));
    require_written(c, space, byte, here);
    if (space == Space::shared && c.read.block != here.block) forget_reads(c);
    note_read(c, here);
  }
}

void check_write(Space space, const void* address, size_t bytes, const void* pc) {
  Access here = now(pc);
  for (size_t i = 0; i < bytes; i++) {
    const char* byte = static_cast<const char*>(address) + i;
    Cell& c = cell(reinterpret_cast<uintptr_t>(byte));
    if (c.copy) fail("copy not waited for", "writes " + describe(byte), {nullptr, 0, pc}, "the copy was issued", {nullptr, 0, c.copy});
    if (!operands.empty()) require_no_operand(byte, here);
    if (is_live(c.write, space, here) && !ordered(c.write, here)) race(byte, "writes", here, "wrote", c.write);
    if (is_live(c.read, space, here) && !ordered(c.read, here)) race(byte, "writes", here, "read", c.read);
    for (const Access& read : c.other_reads)
      if (is_live(read, space, here) && !ordered(read, here)) race(byte, "writes", here, "read", read);
    forget_reads(c);
    c.write = here;
  }
}

void mark_copy(const void* to, size_t bytes, const void* pc) {
  for (size_t i = 0; i < bytes; i++) cell(reinterpret_cast<uintptr_t>(to) + i).copy = pc;
}

void unmark_copy(const void* to, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) cell(reinterpret_cast<uintptr_t>(to) + i).copy = nullptr;
}

// ---- copies and tensor cores, in shared memory --------------------------------------------------

void begin_block_races() { operands.clear(); }

void require_proxy_fence(const void* address, size_t bytes, const char* verb, const void* pc) {
  Access here = now(pc);
  for (size_t i = 0; i < bytes; i++) {
    const char* byte = static_cast<const char*>(address) + i;
    const Access& a = cell(reinterpret_cast<uintptr_t>(byte)).write;
    if (!is_live(a, Space::shared, here) || is_agent(first_rank(a))) continue;
    if (a.fences < machine().threads[first_rank(a)]->proxy_fences) continue;
    fail("no proxy fence", std::string(verb) + " " + describe(byte), {nullptr, 0, pc},
         name_of(a, here) + " wrote it without fence_proxy_async after that", {nullptr, 0, a.pc});
  }
}

void agent_wrote(unsigned agent, uint32_t moment, const void* address, size_t bytes, const void* pc) {
  for (size_t i = 0; i < bytes; i++) cell(reinterpret_cast<uintptr_t>(address) + i).write = by_agent(agent, moment, pc);
}

void agent_read(unsigned agent, uint32_t moment, const void* address, size_t bytes, const void* pc) {
  Access a = by_agent(agent, moment, pc);
  auto same = [&](const Access& other) { return other.warp == a.warp && other.lanes == a.lanes; };
  for (size_t i = 0; i < bytes; i++) {
    Cell& c = cell(reinterpret_cast<uintptr_t>(address) + i);
    if (c.read.block != a.block) forget_reads(c);
    auto earlier = std::find_if(c.other_reads.begin(), c.other_reads.end(), same);
    if (!c.read.block || same(c.read))
      c.read = a;
    else if (earlier != c.other_reads.end())
      *earlier = a;
    else
      c.other_reads.push_back(a);
  }
}

void check_operand(const void* address, size_t bytes, const void* pc) {
  require_proxy_fence(address, bytes, "wgmma reads", pc);
  Access here = now(pc);
  for (size_t i = 0; i < bytes; i++) {
    const char* byte = static_cast<const char*>(address) + i;
    require_written(cell(reinterpret_cast<uintptr_t>(byte)), Space::shared, byte, here);
  }
}

void mark_operand(const void* address, size_t bytes, const void* pc) {
  for (size_t i = 0; i < bytes; i++) {
    Operand& operand = operands[reinterpret_cast<uintptr_t>(address) + i];
    operand.uses++;
    operand.pc = pc;
  }
}

void unmark_operand(const void* address, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    auto operand = operands.find(reinterpret_cast<uintptr_t>(address) + i);
    if (--operand->second.uses == 0) operands.erase(operand);
  }
}

}  // namespace simt
