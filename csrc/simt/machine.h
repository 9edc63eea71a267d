// The simulator behind simt.h: its state, and the parts that check every access.
//
//     kernel --load, store--> hooks.cpp --> memory.cpp   is the access in bounds? is it aligned?
//                                       --> race.cpp     (check only) is it ordered after conflicting accesses?
//                                       --> traffic.cpp  (while profiling) bytes, sectors, wavefronts
//     kernel --barrier, shuffle-----------> schedule.cpp which thread runs, which waits; deadlock, divergence
//                                           warps.cpp, named_barriers.cpp  which threads must meet
//
// One launch at a time, one block at a time, one thread at a time. Compiled without instrumentation.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt.h"

namespace simt {

// A place in the source: file and line (of barriers), or an address in the kernel's code (of accesses), which
// Python turns into a line with the debug information.
struct Place {
  const char* file = nullptr;
  int line = 0;
  const void* pc = nullptr;
};

struct Error {
  std::string kind, kernel, message;
  uint3 block{}, thread{};
  Place at;
  std::string other;  // what happened at `other_at`, for example the second access of a race
  Place other_at;
};

enum class State { ready, waiting, blocked, done };  // blocked: by an asynchronous word (async.h)

struct PendingCopy {
  char* to;
  const char* from;
  size_t bytes;
  int group;
};

struct NamedBarrier {
  int id = 0, threads = 0;  // id 0: none
  bool operator==(const NamedBarrier&) const = default;
};

struct Thread {
  Fiber fiber;
  uint3 index{};
  int rank = 0;  // in the block: x first, then y, then z; each 32 consecutive ranks are a warp
  State state = State::done;
  const char* waits_for = nullptr;  // "__syncthreads"
  bool at_barrier = false;
  unsigned mask = 0;           // lanes of the warp that must come here too; 0: not a matter of this warp alone
  NamedBarrier named;          // at named_barrier_sync or named_barrier_arrive
  Place at;
  void* operand = nullptr;
  std::vector<PendingCopy> copies;
  int copy_group = 0;
  const void* mbarrier = nullptr;  // blocked there, until the phase of `parity` is complete
  unsigned parity = 0;
  uint32_t proxy_fences = 0;       // fence_proxy_async run in this block
  const void* last_address = nullptr;  // with `repeats`: to detect a thread that spins on a value
  uint32_t repeats = 0;

  int warp() const { return rank / 32; }
  int lane() const { return rank % 32; }
};

// ---- schedule.cpp -----------------------------------------------------------------------------

struct Order {  // of blocks, warps and lanes
  bool reversed = false;
  uint64_t seed = 0;  // 0: not shuffled
  uint64_t last = 0;  // only so many of the grid's last blocks run; 0: all
};

struct Machine {
  // settings
  bool check = false;
  Order order;
  std::map<std::string, unsigned> registers;  // of a thread, by kernel, where they are known

  // the launch
  std::string kernel;
  dim3 grid, block_size;
  size_t dynamic_bytes = 0;
  size_t asked_bytes = 0;  // of dynamic shared memory, by the kernel, before this launch
  void (*call)(const void*) = nullptr;
  const void* arguments = nullptr;
  size_t arguments_bytes = 0;

  // the block
  uint3 block{};
  uint32_t block_serial = 0;          // 1, 2, ... in the order in which blocks run
  uint32_t barriers = 0;              // barriers passed in this block
  std::vector<uint32_t> warp_syncs;   // per warp: __syncwarp calls passed in this block
  std::vector<Thread*> threads;
  Thread* running = nullptr;          // null in the scheduler and in warp operations

  bool failed = false;  // like a sticky CUDA error: launches do nothing until Python has read it
  Error error;
};

Machine& machine();

// Records the error and stops the kernel: never returns to the thread that called it.
[[noreturn]] void fail(const char* kind, const std::string& message, Place at, const std::string& other = "",
                       Place other_at = {});

Place place(const Where& where);
bool same_wait(const Thread& a, const Thread& b);  // they wait for the same, at one line
void wait(const char* name, Where where);          // the running thread, from its next Fiber::suspend() on
void block(const char* name, Where where);         // the same, until somebody makes it ready

// ---- warps.cpp --------------------------------------------------------------------------------

// The running lane waits for the lanes of `mask`. True in the last one; the others return when they run again.
bool last_lane(const char* name, unsigned mask, NamedBarrier named, Where where);
std::string mask_text(unsigned mask);

// ---- named_barriers.cpp -----------------------------------------------------------------------

void begin_block_barriers();
void end_block_barriers();               // an error if warps have arrived for whom nobody waited
std::string arrived_text(int id);        // "64 of 96 threads are there"

// ---- limits.cpp -------------------------------------------------------------------------------

// Why a chip refuses this launch; "" if it does not.
std::string wrong_launch(const std::string& kernel, dim3 grid, dim3 block);
std::string wrong_shared(size_t static_bytes);  // the same of the shared memory, once arrays are known
bool too_many_arrays(size_t static_bytes);      // for nvcc
size_t asked_for(const char* kernel, Where where);

// ---- memory.cpp -------------------------------------------------------------------------------

enum class Space { global, shared, local };

struct Moved {
  uint64_t read_bytes = 0, write_bytes = 0;
};

struct Range {
  std::string name;
  char* base;
  size_t bytes;
  Moved* moved = nullptr;  // while profiling: the running kernel's traffic of this tensor
};

struct Location {
  Space space;
  Range* tensor;  // null unless global
};

void add_global(const std::string& name, const void* base, size_t bytes);
void clear_globals();
std::vector<Range>& global_ranges();
void begin_launch_memory();
void begin_block_memory();

// The memory that holds [address, address + bytes). Fails if it lies in none, or is not aligned.
Location locate(const void* address, size_t bytes, bool aligned, const char* verb, const void* pc);
std::string describe(const void* address);  // "`tile` + 128 bytes"
size_t shared_offset(const void* address);
char* at_shared_offset(size_t offset);
bool in_shared_array(const void* address, size_t bytes);

// ---- race.cpp ---------------------------------------------------------------------------------

void begin_launch_races();
void check_read(Space space, const void* address, size_t bytes, const void* pc);
void check_write(Space space, const void* address, size_t bytes, const void* pc);
void mark_copy(const void* to, size_t bytes, const void* pc);  // a copy was issued and not yet waited for
void unmark_copy(const void* to, size_t bytes);

// Accesses of copies and of tensor cores (agents.cpp), in shared memory. `check_operand`: the running thread's warp
// may let tensor cores read this now; `mark_operand`: they may do so until `unmark_operand`.
void begin_block_races();
void require_proxy_fence(const void* address, size_t bytes, const char* verb, const void* pc);
void agent_wrote(unsigned agent, uint32_t moment, const void* address, size_t bytes, const void* pc);
void agent_read(unsigned agent, uint32_t moment, const void* address, size_t bytes, const void* pc);
void check_operand(const void* address, size_t bytes, const void* pc);
void mark_operand(const void* address, size_t bytes, const void* pc);
void unmark_operand(const void* address, size_t bytes);

// ---- clocks.cpp -------------------------------------------------------------------------------

using Clocks = std::vector<uint32_t>;               // by thread: up to which moment its accesses are known; 0: none
void start_clocks();                                // at the first word of a block that needs them
void stop_clocks();                                 // a new block
uint32_t moment();                                  // of the running thread
bool knows(unsigned rank, uint32_t moment);         // the running thread knows that thread's accesses up to `moment`
void release_into(Clocks& to, unsigned rank);       // what the thread did and knows so far
void acquire(const Clocks& from, unsigned rank);
void meet_in_warp(unsigned warp, unsigned mask);    // __syncwarp

// ---- asynchronous words (async.h) ---------------------------------------------------------------

void begin_block_async();
bool end_block_async();                             // false: an error, something is still under way
bool land_a_copy();                                 // no thread can continue; false: that would not help
std::string mbarrier_state(const void* mbarrier);   // "`full` + 8 bytes, whose phase 0 lacks 1 arrival"
bool is_agent(unsigned rank);
std::string agent_name(unsigned rank);

// ---- traffic.cpp ------------------------------------------------------------------------------

struct Counters {
  uint64_t launches = 0, blocks = 0, threads = 0;
  uint64_t global_read_bytes = 0, global_write_bytes = 0;
  uint64_t global_read_sectors = 0, global_write_sectors = 0;
  uint64_t shared_read_bytes = 0, shared_write_bytes = 0;
  uint64_t shared_accesses = 0, shared_wavefronts = 0;
  uint64_t barriers = 0, warp_operations = 0, async_copy_bytes = 0, mma = 0, wgmma = 0;
  std::map<std::string, Moved> tensors;  // the global bytes by tensor name
};

// What the host asked of the CUDA runtime besides launches (csrc/cuda/model/runtime.h).
struct HostCalls {
  uint64_t copies_to_device = 0, copies_to_host = 0, waits = 0;
};
HostCalls& host_calls();  // since `start_profile`

void start_profile();
std::vector<std::pair<std::string, Counters>> stop_profile();
void count_launch(const std::string& kernel, uint64_t blocks, uint64_t threads);
Counters* counters();  // of the running kernel; null without profiling
void count_access(const Location& at, bool write, const void* address, size_t bytes, const void* pc);
void flush_warp();  // the lanes of a warp have met: counts their accesses so far as the warp's accesses

}  // namespace simt
