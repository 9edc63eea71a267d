// Warp operations: the lanes that a mask names meet, and exchange what they hold.
//
//     __shfl_xor_sync(0x0000000f, x, 1)     lanes 0 .. 3 wait for each other, the rest of the warp goes on
//     __shfl_xor_sync(0x000000f0, x, 1)     lanes 4 .. 7 at the same time
//
// A lane waits until every lane of its mask is at the same operation, at the same line, with the same mask. If that
// cannot happen any more, the scheduler reports which threads wait, and where.
//
// Stricter than CUDA on purpose: CUDA lets lanes meet from different lines, and forgets lanes that have returned.
// Source: PTX ISA, shfl.sync, vote.sync, bar.warp.sync.

#include <cstdio>
#include <cstring>

#include "machine.h"

namespace simt {
namespace {

template <class Call>
void for_lanes(unsigned mask, Call call) {
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) call(lane);
}

bool all_at(Thread* const* warp, const Thread& self) {
  for (unsigned lane = 0; lane < 32; lane++)
    if ((self.mask >> lane & 1) && !(warp[lane]->state == State::waiting && same_wait(*warp[lane], self))) return false;
  return true;
}

[[noreturn]] void not_named(unsigned mask, const char* what, int lane, const Where& where) {
  fail("warp operation", "the mask " + mask_text(mask) + " does not name " + what + ", " + std::to_string(lane), place(where));
}

// Lanes that are not named may still be on their way to the accesses before: these are one access of the warp.
void count_operation(unsigned mask) {
  if (Counters* c = counters()) c->warp_operations++;
  if (mask == kAllLanes) flush_warp();
}

}  // namespace

std::string mask_text(unsigned mask) {
  char text[11];
  snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

int own_lane(unsigned mask, Where where) {
  int lane = machine().running->lane();
  if (!(mask >> lane & 1)) not_named(mask, "the lane that calls", lane, where);
  return lane;
}

void require_read(unsigned mask, int lane, Where where) {
  if (!(mask >> lane & 1)) not_named(mask, "the lane that is read", lane, where);
}

void require_width(int width, Where where) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail("warp operation", "the width is 32, 16, 8, 4, 2 or 1, not " + std::to_string(width), place(where));
}

bool last_lane(const char* name, unsigned mask, NamedBarrier named, Where where) {
  Machine& m = machine();
  Thread& self = *m.running;
  own_lane(mask, where);
  wait(name, where);
  self.mask = mask;
  self.named = named;
  Thread* const* warp = &m.threads[self.warp() * 32];
  if (!all_at(warp, self)) {
    Fiber::suspend();
    return false;
  }
  for_lanes(mask, [&](unsigned lane) { warp[lane]->state = State::ready; });
  return true;
}

void warp_operation(const char* name, unsigned mask, void* operand, Combine combine, Where where) {
  Machine& m = machine();
  Thread& self = *m.running;
  self.operand = operand;
  if (!last_lane(name, mask, {}, where)) return;
  void* operands[32] = {};
  for_lanes(mask, [&](unsigned lane) { operands[lane] = m.threads[self.warp() * 32 + lane]->operand; });
  m.running = nullptr;  // hooks ignore these accesses: `combine` reads the registers of all lanes
  combine(operands);
  m.running = &self;
  count_operation(mask);
}

// Only __syncwarp orders memory; a shuffle and a vote exchange registers and order nothing.
void sync_warp(unsigned mask, Where where) {
  if (!last_lane("__syncwarp", mask, {}, where)) return;
  Machine& m = machine();
  unsigned warp = m.running->warp();
  if (mask == kAllLanes)
    m.warp_syncs[warp]++;
  else
    start_clocks();
  meet_in_warp(warp, mask);
  count_operation(mask);
}

}  // namespace simt
