// How the threads of a warpgroup meet: beside those of a warp (warps.cpp), all 128.

#include "warpgroup.h"

#include <algorithm>

#include "async.h"

namespace simt {
namespace {

constexpr unsigned kThreads = 128;

bool is_here(const Thread& t, const Thread& self) {
  return t.state == State::blocked && !t.mbarrier && same_wait(t, self);
}

}  // namespace

bool meet_warpgroup(const char* name, void* operand, Where where, Thread* const** lanes) {
  Machine& m = machine();
  Thread& self = *m.running;
  unsigned first = self.rank / kThreads * kThreads;
  if (m.threads.size() < first + kThreads)
    fail("warpgroup", std::string(name) + " takes four warps from a multiple of 128 threads; this block has " +
         std::to_string(m.threads.size() - first) + " threads there", place(where));
  block(name, where);
  self.operand = operand;
  *lanes = &m.threads[first];
  bool complete = std::all_of(*lanes, *lanes + kThreads, [&](Thread* t) { return is_here(*t, self); });
  if (!complete) Fiber::suspend();
  return complete;
}

void release_warpgroup(Thread* const* lanes) {
  for (unsigned i = 0; i < kThreads; i++) lanes[i]->state = State::ready;
}

void change_registers(Where where) {
  Thread* const* lanes;
  if (meet_warpgroup("setmaxnreg", nullptr, where, &lanes)) release_warpgroup(lanes);
}

}  // namespace simt
