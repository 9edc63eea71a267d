// What each thread knows of the accesses of others, where a barrier of some threads orders them (only with `check`).
//
// __syncthreads orders all threads of a block and __syncwarp() all lanes of a warp: two counters are enough for these.
// A __syncwarp of some lanes, or a named barrier, orders its participants and nobody else:
//
//     warp 0    write tile    arrive(1) ---.                     moment 4 -> 5
//     warp 2                               '--> sync(1), read tile       knows warp 0's lanes up to moment 4
//     warp 3    read tile: a race
//
// So each thread has a vector clock: of each other thread, the last moment whose accesses come before. Its own moment
// grows when it releases what it did. An access comes before another thread's next one if that thread knows its moment.
//
// The clocks of a block start at its first such word. Until then a thread's moment is the number of __syncwarp() that
// its warp has passed, and it knows its warp's lanes up to the last one.
//
// Source: Lamport, "Time, clocks, and the ordering of events" (1978); Mattern, "Virtual time" (1989).

#include <algorithm>

#include "machine.h"

namespace simt {
namespace {

bool running = false;
std::vector<uint32_t> moments;  // by thread
std::vector<Clocks> known;      // by thread

void join(Clocks& to, const Clocks& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); i++) to[i] = std::max(to[i], from[i]);
}

}  // namespace

void stop_clocks() { running = false; }

void start_clocks() {
  const Machine& m = machine();
  if (running || !m.check) return;
  running = true;
  size_t threads = m.threads.size();
  moments.assign(threads, 0);
  known.assign(threads, Clocks(threads));
  for (size_t rank = 0; rank < threads; rank++) {
    uint32_t passed = m.warp_syncs[rank / 32];
    moments[rank] = passed + 1;
    std::fill_n(known[rank].begin() + rank / 32 * 32, 32, passed);
  }
}

uint32_t moment() {
  const Thread& self = *machine().running;
  return running ? moments[self.rank] : machine().warp_syncs[self.warp()] + 1;
}

bool knows(unsigned rank, uint32_t moment) {
  const Machine& m = machine();
  const Thread& self = *m.running;
  if (static_cast<int>(rank) == self.rank) return true;
  if (running) return rank < known[self.rank].size() && known[self.rank][rank] >= moment;
  return static_cast<int>(rank) / 32 == self.warp() && m.warp_syncs[self.warp()] >= moment;
}

void release_into(Clocks& to, unsigned rank) {
  if (!running) return;
  join(to, known[rank]);
  to[rank] = moments[rank]++;
}

void acquire(const Clocks& from, unsigned rank) {
  if (running) join(known[rank], from);
}

void meet_in_warp(unsigned warp, unsigned mask) {
  Clocks all;
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) release_into(all, warp * 32 + lane);
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) acquire(all, warp * 32 + lane);
}

}  // namespace simt
