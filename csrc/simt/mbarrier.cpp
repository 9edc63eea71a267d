// Phases, arrivals and bytes of mbarriers, as PTX counts them.
//
// The state is kept here, by address; shared memory itself keeps the bits it had. A thread that waits is blocked
// until its phase is complete. Copies land when no thread can continue (bulk.cpp), so a wait that is left out reads
// what was there before.
//
// With `check` an arrival hands on what the thread did and knows, and a wait takes it over (clocks.cpp).
// Stricter than PTX: the bytes of a phase may not fall below 0 once all threads have arrived. On a GPU it would hang.

#include <algorithm>
#include <map>

#include "async.h"
#include "mbarrier.h"

namespace simt {
namespace {

constexpr int64_t kMost = (1 << 20) - 1;  // arrivals, and bytes under way in both directions

struct Barrier {
  unsigned count = 0, pending = 0;
  int64_t bytes = 0;  // expected and not yet there
  unsigned phase = 0;
  Place made;
  int maker = 0;                    // the rank of the thread that ran mbarrier_init
  uint32_t made_at = 0, barriers = 0;  // its moment, and the barriers of the block before
  bool fenced = false;              // copies may use it
  Clocks gathered, complete;        // what the arrivals of this phase hand on, and those of complete phases
  unsigned agent = 0;               // the copies that land here
};

std::map<const void*, Barrier> barriers;

std::string count_of(uint64_t number, const char* what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
}

std::string name(const void* at) { return describe(at); }

void require_place(const void* at, const char* verb, const Place& here) {
  if (!in_shared_array(at, sizeof(Mbarrier)))
    fail("mbarrier", std::string(verb) + " an mbarrier outside shared memory (" + name(at) + ")", here);
  if (reinterpret_cast<uintptr_t>(at) % sizeof(Mbarrier))
    fail("misaligned", std::string(verb) + " an mbarrier at " + name(at) + ", which is no multiple of 8", here);
}

// Nothing orders this thread after mbarrier_init: it may come first on a GPU.
bool is_ordered_after_init(const Barrier& b) {
  const Machine& m = machine();
  return !m.check || m.barriers > b.barriers || knows(b.maker, b.made_at);
}

Barrier& find(const void* at, const char* verb, const Place& here) {
  require_place(at, verb, here);
  auto found = barriers.find(at);
  if (found == barriers.end()) fail("mbarrier", std::string(verb) + " " + name(at) + " before mbarrier_init", here);
  if (!is_ordered_after_init(found->second))
    fail("race", std::string(verb) + " " + name(at) + ", nothing orders it after mbarrier_init", here,
         "mbarrier_init was called", found->second.made);
  return found->second;
}

bool is_complete(const Barrier& b, unsigned parity) { return b.phase % 2 != parity; }

void wake(const void* at, const Barrier& b) {
  for (Thread* t : machine().threads) {
    if (t->mbarrier != at || !is_complete(b, t->parity)) continue;
    t->mbarrier = nullptr;
    t->state = State::ready;
  }
}

bool complete_if_all_is_there(const void* at, Barrier& b) {
  if (b.pending || b.bytes) return false;
  b.phase++;
  b.pending = b.count;
  b.complete.swap(b.gathered);
  for (size_t i = 0; i < b.gathered.size(); i++) {  // what earlier phases handed on stays known
    if (i >= b.complete.size()) b.complete.resize(b.gathered.size());
    b.complete[i] = std::max(b.complete[i], b.gathered[i]);
  }
  b.gathered = b.complete;
  wake(at, b);
  return true;
}

}  // namespace

void begin_block_mbarriers() { barriers.clear(); }

std::string too_many_bytes(const void* at) {
  const Barrier& b = barriers.at(at);
  if (b.pending || b.bytes >= 0) return "";
  std::string phase = "phase " + std::to_string(b.phase) + " of " + name(at);
  return phase + " expects " + count_of(-b.bytes, "byte") + " fewer than have landed";
}

std::string mbarrier_state(const void* at) {
  const Barrier& b = barriers.at(at);
  std::string text = name(at) + ", whose phase " + std::to_string(b.phase) + " lacks ";
  if (b.pending) text += count_of(b.pending, "arrival") + (b.bytes ? " and " : "");
  if (b.bytes) text += count_of(b.bytes, "byte");
  return text;
}

void init_mbarrier(Mbarrier* at, unsigned count, Where where) {
  Place here = place(where);
  require_place(at, "initialises", here);
  if (count < 1 || count > kMost)
    fail("mbarrier", "initialises " + name(at) + " with a count of " + std::to_string(count) + ": 1 to 1048575", here);
  auto found = barriers.find(at);
  if (found != barriers.end())
    fail("mbarrier", "initialises " + name(at) + " again", here, "mbarrier_init was called", found->second.made);
  start_clocks();
  Barrier& b = barriers[at];
  b.count = b.pending = count;
  b.made = here;
  b.maker = machine().running->rank;
  b.made_at = moment();
  b.barriers = machine().barriers;
  b.agent = new_agent("a copy for " + name(at));
}

void arrive(Mbarrier* at, unsigned expected_bytes, Where where) {
  Place here = place(where);
  Barrier& b = find(at, "arrives at", here);
  b.bytes += expected_bytes;
  if (b.bytes > kMost)
    fail("mbarrier", name(at) + " expects " + std::to_string(b.bytes) + " bytes; the most is 1048575", here);
  if (b.pending == 0)
    fail("mbarrier", "arrives at " + name(at) + ", whose phase " + std::to_string(b.phase) + " has its " +
         count_of(b.count, "arrival") + " and waits for " + count_of(b.bytes, "byte"), here);
  b.pending--;
  if (std::string wrong = too_many_bytes(at); !wrong.empty()) fail("mbarrier", wrong, here);
  release_into(b.gathered, machine().running->rank);
  complete_if_all_is_there(at, b);
}

void wait_mbarrier(Mbarrier* at, unsigned parity, Where where) {
  Place here = place(where);
  if (parity > 1) fail("mbarrier", "a parity is 0 or 1, not " + std::to_string(parity), here);
  Thread& self = *machine().running;
  Barrier& b = find(at, "waits at", here);
  while (!is_complete(b, parity)) {
    block("mbarrier_wait", where);
    self.mbarrier = at;
    self.parity = parity;
    Fiber::suspend();
  }
  acquire(b.complete, self.rank);
}

void fence_mbarriers() {
  for (auto& [at, b] : barriers)
    if (b.maker == machine().running->rank) b.fenced = true;
}

void fence_proxy() {
  fence_mbarriers();
  machine().running->proxy_fences++;
}

// ---- copies -----------------------------------------------------------------------------------

void require_mbarrier_for_copy(const Mbarrier* at, const void* pc) {
  Place here{nullptr, 0, pc};
  if (!find(at, "copies for", here).fenced)
    fail("no proxy fence", "copies for " + name(at) + ", which copies do not see", here,
         "no fence_mbarrier_init follows this mbarrier_init", barriers.at(at).made);
}

unsigned agent_of(const Mbarrier* at) { return barriers.at(at).agent; }

bool somebody_waits_for_bytes(const Mbarrier* at) {
  for (const Thread* t : machine().threads)
    if (t->mbarrier == at) return barriers.at(at).pending == 0;
  return false;
}

bool complete_bytes(const Mbarrier* at, size_t bytes, uint32_t moment) {
  Barrier& b = barriers.at(at);
  b.bytes -= bytes;
  note_moment(b.gathered, b.agent, moment);
  return complete_if_all_is_there(at, b);
}

}  // namespace simt
