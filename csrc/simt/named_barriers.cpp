// Named barriers: some warps of a block wait for each other, or for warps that only say that they came.
//
//     named_barrier_arrive(1, 64)    warp 0: its 32 threads have come; it goes on
//     named_barrier_sync(1, 64)      warp 1: waits until 64 threads have come. Then barrier 1 is empty again
//
// A block has barriers 1 to 15 beside barrier 0, which is __syncthreads. A warp comes as a whole: its 32 lanes meet
// first. Memory: what the warps that came did before is known to those that waited, and to nobody else.
//
// Stricter than CUDA on purpose: a warp comes once until the barrier is complete, all name the same number of threads,
// and a barrier that is not complete when the block ends is an error.
// Source: PTX ISA, bar.sync and bar.arrive.

#include "machine.h"

namespace simt {
namespace {

constexpr int kBarriers = 16;

struct Barrier {
  int threads = 0;              // that it needs; 0: nobody has come
  std::vector<unsigned> came;   // warps
  Place last;
  Clocks clocks;                // what the warps that came have released
};

Barrier barriers[kBarriers];

int arrived(const Barrier& b) { return 32 * static_cast<int>(b.came.size()); }

std::string text(int number) { return std::to_string(number); }

void check_call(int id, int threads, const Where& where) {
  int block = static_cast<int>(machine().threads.size());
  std::string wrong;
  if (id < 1 || id >= kBarriers) wrong = "named barriers are 1 to 15, not " + text(id) + "; 0 is __syncthreads";
  else if (threads < 32 || threads % 32) wrong = "a named barrier takes whole warps: " + text(threads) + " threads is no multiple of 32";
  else if (threads > block) wrong = "a block of " + text(block) + " threads cannot bring " + text(threads);
  if (!wrong.empty()) fail("named barrier", wrong, place(where));
}

void check_arrival(const Barrier& b, const NamedBarrier& named, unsigned warp, const Where& where) {
  std::string barrier = "barrier " + text(named.id);
  if (b.threads && b.threads != named.threads)
    fail("named barrier", barrier + " takes " + text(named.threads) + " threads here", place(where), "and " + text(b.threads), b.last);
  for (unsigned other : b.came)
    if (other == warp) fail("named barrier", "the warp comes a second time to " + barrier + ": " + arrived_text(named.id), place(where), "the last came", b.last);
}

bool waits_at(const Thread& t, int id) { return t.state == State::waiting && t.named.id == id && !t.mask; }

void complete(int id) {
  Machine& m = machine();
  Barrier done = std::move(barriers[id]);
  barriers[id] = {};
  for (Thread* t : m.threads) {
    if (!waits_at(*t, id)) continue;
    t->state = State::ready;
    acquire(done.clocks, t->rank);
  }
  if (Counters* c = counters()) c->barriers++;
}

// The running lane is the last of its warp: the warp has come. The lanes of a warp that `waits` wait from here on.
void arrive(const NamedBarrier& named, bool waits, const Where& where) {
  Machine& m = machine();
  unsigned warp = m.running->warp();
  Barrier& b = barriers[named.id];
  check_arrival(b, named, warp, where);
  start_clocks();
  b.threads = named.threads;
  b.came.push_back(warp);
  b.last = place(where);
  for (unsigned rank = warp * 32; rank < warp * 32 + 32; rank++) {
    Thread& lane = *m.threads[rank];
    release_into(b.clocks, rank);
    lane.mask = 0;
    if (waits) lane.state = State::waiting;
  }
  flush_warp();
  if (arrived(b) == b.threads) complete(named.id);
}

}  // namespace

void named_barrier(const char* name, int id, int threads, bool waits, Where where) {
  check_call(id, threads, where);
  NamedBarrier named{id, threads};
  Thread& self = *machine().running;
  if (last_lane(name, kAllLanes, named, where)) {
    arrive(named, waits, where);
    if (self.state == State::waiting) Fiber::suspend();
  }
}

std::string arrived_text(int id) {
  return text(arrived(barriers[id])) + " of " + text(barriers[id].threads) + " threads have come";
}

void begin_block_barriers() {
  for (Barrier& b : barriers) b = {};
}

void end_block_barriers() {
  Machine& m = machine();
  for (int id = 1; id < kBarriers; id++) {
    if (!barriers[id].threads) continue;
    m.failed = true;
    m.error = {"named barrier", m.kernel, "the block ends, and of barrier " + text(id) + " " + arrived_text(id), m.block,
               m.threads[barriers[id].came.back() * 32]->index, barriers[id].last, "", {}};
    return;
  }
}

}  // namespace simt
