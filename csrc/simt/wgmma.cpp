// Multiplications under way, per warpgroup. They are done as late as is legal: when the first thread waits for them,
// and each thread gets its numbers at its own wait.
//
//     wgmma    the 128 threads meet; their numbers of c are taken away, NaN is left in their place
//     wait     the operands are read from shared memory, the sums made (tensor_core.cpp), the numbers given back
//
// So a wait that is left out, and a tile that is overwritten too early, show in the numbers. Several multiplications
// of the same c in a row are one *chain*: only the wait for its last one gives the numbers back.
//
// With `check` the operands are read under the rules of race.cpp when a multiplication is issued: they must be
// written, seen through a proxy fence, and known to a thread of each warp. Until it is done nobody may write them;
// after that only threads that are ordered after the wait.
//
// Stricter than PTX: every wait ends what the last wgmma_fence allowed. Not checked: registers of `a` that are
// written before the wait (they are read when the multiplication is issued).

#include "wgmma.h"

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>

#include "async.h"
#include "tensor_core.h"

namespace simt {
namespace {

constexpr int kThreads = 128, kRows = 64, kDepth = 16;

struct Chain {
  float* c[kThreads];
  int columns;
  std::vector<float> sums;  // [kRows, columns]
};

struct Multiplication {
  std::shared_ptr<Chain> chain;
  WgmmaCall call;
  std::vector<Factor> a;             // [kRows, kDepth], if it comes from registers
  std::vector<const char*> chunks;   // of both operands, with `check`
  int group;
  const void* pc;
  bool done = false;
  uint32_t moment = 0;
  std::bitset<kThreads> landed;
};

struct Warpgroup {
  std::deque<Multiplication> queue;
  unsigned agent = 0;
  bool has_agent = false;
};

struct Sides {  // of a thread
  int commits = 0;
  bool fenced = false;
};

Warpgroup groups[8];
Sides sides[1024];

Warpgroup& group_of(const Thread& t) { return groups[t.rank / kThreads]; }

// The row and the column of number i of thread `rank`, in a product.
int row_of(int rank, int i) { return rank / 32 * 16 + rank % 32 / 4 + i % 4 / 2 * 8; }
int column_of(int rank, int i) { return i / 4 * 8 + rank % 4 * 2 + i % 2; }

// The operand as [extent, kDepth].
std::vector<Factor> read_operand(const WgmmaCall& call, MatrixDescriptor from, Major major, int extent, const void* pc) {
  SharedMatrix matrix = find_matrix(from, major, extent, pc);
  std::vector<Factor> numbers(extent * kDepth);
  for (int i = 0; i < extent; i++)
    for (int k = 0; k < kDepth; k++) {
      int row = major == Major::k ? i : k, place = major == Major::k ? k : i;
      uint16_t bits;
      memcpy(&bits, matrix.chunks[row * matrix.chunks_per_row + place / 8] + place % 8 * 2, 2);
      numbers[i * kDepth + k] = factor_of(call.number(bits), call.smallest_exponent);
    }
  return numbers;
}

// ---- issue --------------------------------------------------------------------------------------

const WgmmaCall& call_of(const Thread* t) { return *static_cast<const WgmmaCall*>(t->operand); }

// A chain that is under way with the same c, or a new one.
std::shared_ptr<Chain> find_chain(Warpgroup& group, Thread* const* lanes, const void* pc) {
  const WgmmaCall& first = call_of(lanes[0]);
  for (auto m = group.queue.rbegin(); m != group.queue.rend(); ++m) {
    if (m->chain->c[0] != first.c || m->landed[0]) continue;
    if (m->chain->columns != first.count * 2) fail("wgmma", "c is under way with another number of columns", {nullptr, 0, pc});
    return m->chain;
  }
  auto chain = std::make_shared<Chain>();
  chain->columns = first.count * 2;
  chain->sums.resize(kRows * chain->columns);
  for (int rank = 0; rank < kThreads; rank++) {
    float* c = chain->c[rank] = call_of(lanes[rank]).c;
    for (int i = 0; i < first.count; i++) {
      chain->sums[row_of(rank, i) * chain->columns + column_of(rank, i)] = c[i];
      c[i] = NAN;
    }
  }
  return chain;
}

// Register number i of a is element (row_of(rank, i % 4), 8 * (i / 4) + ..), as for mma.
std::vector<Factor> registers_of_a(Thread* const* lanes) {
  std::vector<Factor> a(kRows * kDepth);
  for (int rank = 0; rank < kThreads; rank++)
    for (int i = 0; i < 8; i++) {
      uint16_t bits;
      memcpy(&bits, static_cast<const char*>(call_of(lanes[rank]).a) + 2 * i, 2);
      const WgmmaCall& call = call_of(lanes[rank]);
      a[row_of(rank, i) * kDepth + column_of(rank, i)] = factor_of(call.number(bits), call.smallest_exponent);
    }
  return a;
}

// What tensor cores will read must be ready for a thread of each warp, and stay as it is.
void claim_operands(Multiplication& m, Thread* const* lanes) {
  const WgmmaCall& call = m.call;
  m.chunks = find_matrix(call.b_matrix, call.b_major, call.count * 2, m.pc).chunks;
  if (!call.a) {
    SharedMatrix a = find_matrix(call.a_matrix, call.a_major, kRows, m.pc);
    m.chunks.insert(m.chunks.end(), a.chunks.begin(), a.chunks.end());
  }
  if (!machine().check) return;
  Thread* self = machine().running;
  for (int warp = 0; warp < 4; warp++) {
    machine().running = lanes[warp * 32];
    for (const char* chunk : m.chunks) check_operand(chunk, kChunk, m.pc);
  }
  machine().running = self;
  for (const char* chunk : m.chunks) mark_operand(chunk, kChunk, m.pc);
}

void issue(Thread* const* lanes, const void* pc) {
  Warpgroup& group = group_of(*lanes[0]);
  Multiplication m;
  m.call = call_of(lanes[0]);
  m.group = sides[lanes[0]->rank].commits;
  m.pc = pc;
  start_clocks();
  for (int rank = 0; rank < kThreads; rank++)
    if (sides[lanes[rank]->rank].commits != m.group)
      fail("wgmma", "the threads of the warpgroup have not committed equally many groups", {nullptr, 0, pc});
  claim_operands(m, lanes);
  m.chain = find_chain(group, lanes, pc);
  if (m.call.a) m.a = registers_of_a(lanes);
  group.queue.push_back(std::move(m));
  if (Counters* c = counters()) c->wgmma++;
}

// ---- wait ---------------------------------------------------------------------------------------

void multiply(Chain& chain, const std::vector<Factor>& a, const std::vector<Factor>& b) {
  for (int row = 0; row < kRows; row++)
    for (int column = 0; column < chain.columns; column++) {
      float& c = chain.sums[row * chain.columns + column];
      c = tensor_core_sum(&a[row * kDepth], &b[column * kDepth], c);
    }
}

void finish(Warpgroup& group, Multiplication& m) {
  const WgmmaCall& call = m.call;
  if (!call.a) m.a = read_operand(call, call.a_matrix, call.a_major, kRows, m.pc);
  multiply(*m.chain, m.a, read_operand(call, call.b_matrix, call.b_major, m.chain->columns, m.pc));
  m.done = true;
  if (!machine().check) return;
  if (!group.has_agent) {
    size_t first = (&group - groups) * 4;
    group.agent = new_agent("wgmma of warps " + std::to_string(first) + " to " + std::to_string(first + 3));
    group.has_agent = true;
  }
  m.moment = next_moment(group.agent);
  for (const char* chunk : m.chunks) {
    unmark_operand(chunk, kChunk);
    agent_read(group.agent, m.moment, chunk, kChunk, m.pc);
  }
}

// The running thread knows now what the tensor cores have read.
void learn(unsigned agent, uint32_t moment) {
  Clocks clocks;
  note_moment(clocks, agent, moment);
  acquire(clocks, machine().running->rank);
}

// The thread's numbers of a chain, unless a later multiplication of it is not waited for.
void give_back(const Warpgroup& group, const std::shared_ptr<Chain>& chain, int rank, float* const* arrays, int count,
               const void* pc) {
  for (const Multiplication& m : group.queue)
    if (m.chain == chain && !m.landed[rank]) return;
  float* c = chain->c[rank];
  if (std::find(arrays, arrays + count, c) == arrays + count)
    fail("wgmma", "the accumulators of a finished multiplication are not named by wgmma_wait", {nullptr, 0, pc});
  for (int i = 0; i < chain->columns / 2; i++) c[i] = chain->sums[row_of(rank, i) * chain->columns + column_of(rank, i)];
}

}  // namespace

void begin_block_wgmma() {
  for (Warpgroup& group : groups) group = {};
  for (Sides& s : sides) s = {};
}

bool end_block_wgmma() {
  for (const Warpgroup& group : groups)
    if (!group.queue.empty()) {
      int first = (&group - groups) * kThreads;
      return report("wgmma not waited for", "the block ends while it is under way", first, group.queue.front().pc);
    }
  return true;
}

uint32_t shared_address(const void* p, Where where) {
  if (!in_shared_array(p, 1)) fail("wgmma", "an operand is in shared memory, not in " + describe(p), place(where));
  return shared_offset(p);
}

void fence_wgmma() { sides[machine().running->rank].fenced = true; }

void commit_wgmma() { sides[machine().running->rank].commits++; }

void wgmma(const WgmmaCall& call, Where where) {
  const void* pc = __builtin_return_address(0);
  if (!sides[machine().running->rank].fenced)
    fail("wgmma", "no wgmma_fence stands between the last use of its registers and this wgmma", place(where));
  WgmmaCall mine = call;
  Thread* const* lanes;
  if (!meet_warpgroup("wgmma", &mine, where, &lanes)) return;
  issue(lanes, pc);
  release_warpgroup(lanes);
}

void wait_wgmma(int pending_groups, float* const* arrays, int count) {
  const void* pc = __builtin_return_address(0);
  Thread& self = *machine().running;
  Warpgroup& group = group_of(self);
  Sides& mine = sides[self.rank];
  mine.fenced = false;
  int rank = self.rank % kThreads;
  std::vector<std::shared_ptr<Chain>> chains;
  for (Multiplication& m : group.queue) {
    if (m.group >= mine.commits - pending_groups) break;
    if (m.landed[rank]) continue;
    if (!m.done) finish(group, m);
    m.landed[rank] = true;
    learn(group.agent, m.moment);
    if (std::find(chains.begin(), chains.end(), m.chain) == chains.end()) chains.push_back(m.chain);
  }
  for (const auto& chain : chains) give_back(group, chain, rank, arrays, count, pc);
  while (!group.queue.empty() && group.queue.front().landed.all()) group.queue.pop_front();
}

}  // namespace simt
