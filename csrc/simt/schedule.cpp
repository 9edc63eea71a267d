// The scheduler: blocks run one after another, warps in turn, each lane until it must wait.
//
//     block:  warp 0 runs until all its lanes wait or are done, then warp 1, ...
//             all threads are at the barrier       -> all threads continue
//             no thread can continue otherwise     -> divergence or deadlock: report which threads wait where
//
// The results of a correct kernel do not depend on the order, so tests also run kernels reversed and shuffled.

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "machine.h"

namespace simt {

Machine& machine() {
  static Machine instance;
  return instance;
}

namespace {

bool same(const char* a, const char* b) { return a == b || !strcmp(a, b); }
bool same(const Place& a, const Place& b) { return a.line == b.line && same(a.file, b.file); }

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// 0..count-1 in the order of the settings; `salt` gives every block a different shuffle.
std::vector<unsigned> sequence(uint64_t count, uint64_t salt) {
  const Order& order = machine().order;
  std::vector<unsigned> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  if (order.seed)
    for (uint64_t i = count; i > 1; i--) std::swap(numbers[i - 1], numbers[mix(order.seed * 0x9E3779B9u + salt + i) % i]);
  if (order.reversed) std::reverse(numbers.begin(), numbers.end());
  return numbers;
}

void thread_main() {
  Machine& m = machine();
  m.call(m.arguments);
  m.running->state = State::done;
  Fiber::suspend();
}

void run_thread(Thread& t) {
  Machine& m = machine();
  m.running = &t;
  t.fiber.resume();
  m.running = nullptr;
}

// ---- warps ------------------------------------------------------------------------------------

bool run_warp(unsigned warp, const std::vector<unsigned>& lanes) {
  Machine& m = machine();
  bool moved = false;
  for (bool again = true; again && !m.failed;) {
    again = false;
    for (unsigned lane : lanes) {
      Thread& t = *m.threads[warp * 32 + lane];
      if (t.state != State::ready || m.failed) continue;
      run_thread(t);
      again = moved = true;
    }
  }
  flush_warp();
  return moved;
}

// ---- threads that cannot continue -------------------------------------------------------------

std::string plural(size_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

const char* base_name(const char* file) {
  const char* slash = strrchr(file, '/');
  return slash ? slash + 1 : file;
}

// "__syncthreads", "__syncwarp of 0x0000000f", "named_barrier_sync(1, 96)"
std::string waits_for(const Thread& t) {
  std::string name = t.waits_for;
  if (t.named.id) return name + "(" + std::to_string(t.named.id) + ", " + std::to_string(t.named.threads) + ")";
  return t.mask && t.mask != kAllLanes ? name + " of " + mask_text(t.mask) : name;
}

// "96 threads wait at __syncthreads (norm.cu:12), 32 threads have returned"
std::string who_waits_where() {
  std::map<std::string, size_t> groups;
  for (const Thread* t : machine().threads) {
    if (t->state == State::done)
      groups["have returned"]++;
    else
      groups["wait at " + waits_for(*t) + " (" + base_name(t->at.file) + ":" + std::to_string(t->at.line) +
             (t->named.id && !t->mask ? "; " + arrived_text(t->named.id) : "") + ")" +
             (t->mbarrier ? " for " + mbarrier_state(t->mbarrier) : "")]++;
  }
  std::string text;
  for (const auto& [what, count] : groups) text += (text.empty() ? "" : ", ") + plural(count, "thread") + " " + what;
  return text;
}

Thread* somebody_at_an_mbarrier() {
  for (Thread* t : machine().threads)
    if (t->mbarrier) return t;
  return nullptr;
}

// If the lanes of one warp wait at different places, the error is divergence; if whole warps do, it is a deadlock.
bool some_warp_is_split() {
  const std::vector<Thread*>& threads = machine().threads;
  for (size_t first = 0; first < threads.size(); first += 32) {
    const Thread& a = *threads[first];
    for (size_t i = first; i < first + 32; i++) {
      const Thread& b = *threads[i];
      if (a.state != b.state || (a.state != State::done && !same_wait(a, b))) return true;
    }
  }
  return false;
}

void report_stuck() {
  Machine& m = machine();
  Thread* first = somebody_at_an_mbarrier();  // lanes may wait there alone: that is no divergence
  const char* kind = !first && some_warp_is_split() ? "divergence" : "deadlock";
  if (!first) first = *std::find_if(m.threads.begin(), m.threads.end(), [](Thread* t) { return t->state != State::done; });
  m.failed = true;
  m.error = {kind, m.kernel, who_waits_where(), m.block, first->index, first->at, "", {}};
}

// ---- blocks -----------------------------------------------------------------------------------

bool all_at_one_barrier() {
  const std::vector<Thread*>& threads = machine().threads;
  return std::all_of(threads.begin(), threads.end(), [&](Thread* t) {
    return t->state == State::waiting && t->at_barrier && same(t->at, threads[0]->at);
  });
}

bool all_done() {
  const std::vector<Thread*>& threads = machine().threads;
  return std::all_of(threads.begin(), threads.end(), [](Thread* t) { return t->state == State::done; });
}

void open_barrier() {
  Machine& m = machine();
  m.barriers++;
  if (Counters* c = counters()) c->barriers++;
  for (Thread* t : m.threads) t->state = State::ready;
}

void begin_block(uint3 block) {
  Machine& m = machine();
  m.block = block;
  m.block_serial++;
  m.barriers = 0;
  std::fill(m.warp_syncs.begin(), m.warp_syncs.end(), 0);
  begin_block_memory();
  begin_block_barriers();
  stop_clocks();
  begin_block_async();
  for (Thread* t : m.threads) {
    t->state = State::ready;
    for (const PendingCopy& copy : t->copies) unmark_copy(copy.to, copy.bytes);  // copies of an earlier block
    t->copies.clear();
    t->copy_group = 0;
    t->last_address = nullptr;
    t->mbarrier = nullptr;
    t->proxy_fences = 0;
    t->fiber.prepare(thread_main);
  }
}

void run_block(uint3 block) {
  Machine& m = machine();
  begin_block(block);
  unsigned warps = m.threads.size() / 32;
  std::vector<unsigned> warp_order = sequence(warps, m.block_serial), lane_order = sequence(32, m.block_serial + 1);
  for (;;) {
    bool moved = false;
    for (unsigned warp : warp_order) {
      moved |= run_warp(warp, lane_order);
      if (m.failed) return;
    }
    if (all_done()) return end_block_async() ? end_block_barriers() : void();
    if (all_at_one_barrier())
      open_barrier();
    else if (!moved && !land_a_copy())
      return report_stuck();
  }
}

void make_threads(dim3 size) {
  static std::vector<Thread*> pool;  // kept from launch to launch, with the fibers' stacks
  Machine& m = machine();
  unsigned count = size.x * size.y * size.z;
  while (pool.size() < count) pool.push_back(new Thread);
  m.threads.assign(pool.begin(), pool.begin() + count);
  m.warp_syncs.assign(count / 32, 0);
  for (unsigned i = 0; i < count; i++) {
    m.threads[i]->rank = i;
    m.threads[i]->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
  }
}

// "(attention_v2_kernel<T, 64>)" -> "attention_v2"
std::string plain_name(const char* kernel) {
  std::string name = kernel, suffix = "_kernel";
  name.erase(0, name.find_first_not_of("( "));
  name = name.substr(0, name.find_first_of("<) "));
  bool suffixed = name.size() > suffix.size() && name.ends_with(suffix);
  return suffixed ? name.substr(0, name.size() - suffix.size()) : name;
}

bool refuse(const std::string& message) {
  Machine& m = machine();
  m.failed = true;
  m.error = {"launch", m.kernel, message, {}, {}, {}, "", {}};
  return false;
}

// Fewer than the grid has if the settings say so.
uint64_t blocks_to_run(dim3 grid) {
  uint64_t all = uint64_t{grid.x} * grid.y * grid.z, last = machine().order.last;
  return last ? std::min(last, all) : all;
}

uint3 block_at(uint64_t i, dim3 grid) {
  uint64_t row = i / grid.x;
  return {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(row % grid.y), static_cast<unsigned>(row / grid.y)};
}

bool begin_launch(dim3 grid, dim3 block) {
  Machine& m = machine();
  std::string wrong = wrong_launch(m.kernel, grid, block);
  if (!wrong.empty()) return refuse(wrong);
  if (blocks_to_run(grid) >> 32) return refuse("2^32 blocks and more are too many to simulate");
  unsigned count = block.x * block.y * block.z;
  m.grid = grid;
  m.block_size = block;
  m.block_serial = 0;
  make_threads(block);
  begin_launch_memory();
  begin_launch_races();
  count_launch(m.kernel, blocks_to_run(grid), blocks_to_run(grid) * count);
  return true;
}

}  // namespace

Place place(const Where& where) { return {where.file, where.line, nullptr}; }

bool same_wait(const Thread& a, const Thread& b) {
  return a.mask == b.mask && a.named == b.named && same(a.at, b.at) && same(a.waits_for, b.waits_for);
}

void wait(const char* name, Where where) {
  Thread& t = *machine().running;
  t.state = State::waiting;
  t.waits_for = name;
  t.at_barrier = false;
  t.mask = 0;
  t.named = {};
  t.at = place(where);
}

void block(const char* name, Where where) {
  wait(name, where);
  machine().running->state = State::blocked;
}

void fail(const char* kind, const std::string& message, Place at, const std::string& other, Place other_at) {
  Machine& m = machine();
  Thread* t = m.running;
  m.failed = true;
  m.error = {kind, m.kernel, message, m.block, t->index, at, other, other_at};
  for (;;) Fiber::suspend();
}

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*call)(const void*),
            const void* arguments, size_t arguments_bytes, Where where) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> hold(one_at_a_time);
  Machine& m = machine();
  if (m.failed) return;
  m.kernel = plain_name(kernel);
  m.dynamic_bytes = shared_bytes;
  m.asked_bytes = asked_for(kernel, where);
  m.call = call;
  m.arguments = arguments;
  m.arguments_bytes = arguments_bytes;
  if (!begin_launch(grid, block)) return;
  uint64_t count = blocks_to_run(grid), first = uint64_t{grid.x} * grid.y * grid.z - count;
  for (unsigned n : sequence(count, 0)) {
    run_block(block_at(first + n, grid));
    if (m.failed) return;
  }
}

// ---- called by kernels ------------------------------------------------------------------------

uint3 thread_index() { return machine().running->index; }
uint3 block_index() { return machine().block; }
dim3 block_size() { return machine().block_size; }
dim3 grid_size() { return machine().grid; }

void barrier(const char* name, Where where) {
  wait(name, where);
  machine().running->at_barrier = true;
  Fiber::suspend();
}

void count_mma() {
  if (Counters* c = counters()) c->mma++;
}

}  // namespace simt
