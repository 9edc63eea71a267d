// Agents: what makes accesses without being a thread. The copies of an mbarrier are one, a warpgroup's tensor cores
// are one. What an agent writes or reads is known only to threads that waited for it, not to the one that gave the
// order.
//
// For clocks.cpp an agent is one more rank, after those of the block's threads:
//
//     rank   0 .. 95 threads | 96 copies for `full` | 97 copies for `full` + 8 bytes | 98 wgmma of warps 0 to 3

#include "async.h"

namespace simt {
namespace {

struct Agent {
  std::string name;
  uint32_t moment = 0;
};

std::vector<Agent> agents;

unsigned first_rank() { return machine().threads.size(); }

}  // namespace

void begin_block_agents() { agents.clear(); }

unsigned new_agent(const std::string& name) {
  agents.push_back({name});
  return first_rank() + agents.size() - 1;
}

bool is_agent(unsigned rank) { return rank >= first_rank(); }

std::string agent_name(unsigned rank) { return agents[rank - first_rank()].name; }

uint32_t next_moment(unsigned rank) { return ++agents[rank - first_rank()].moment; }

void note_moment(Clocks& clocks, unsigned rank, uint32_t moment) {
  if (clocks.size() <= rank) clocks.resize(rank + 1);
  clocks[rank] = moment;
}

}  // namespace simt
