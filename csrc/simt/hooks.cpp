// Every load and store of a kernel arrives here.
//
// Kernels are compiled with -fsanitize=thread, which makes the compiler call __tsan_read4(p) before it
// reads 4 bytes, and so on. That runtime is not linked; these functions take its place, and the address
// they return to names the line of the kernel.

#include <cstring>

#include "machine.h"

namespace simt {
namespace {

constexpr uint32_t kSpinLimit = 1 << 20;

// A thread that reads one place a million times waits for a value that nobody will write: threads run
// until they wait at a barrier, blocks one after another.
void notice_spinning(const void* address, const void* pc) {
  Thread& t = *machine().running;
  if (address != t.last_address) {
    t.last_address = address;
    t.repeats = 0;
  } else if (++t.repeats == kSpinLimit) {
    fail("deadlock", "waits for " + describe(address) + " to change by reading it again and again", {nullptr, 0, pc});
  }
}

void access(bool write, const void* address, size_t bytes, bool aligned, const void* pc) {
  Machine& m = machine();
  if (!m.running) return;  // launchers and warp operations: nobody's access
  Location at = locate(address, bytes, aligned, write ? "write" : "read", pc);
  if (at.space == Space::local) return;
  if (!write) notice_spinning(address, pc);
  if (m.check) (write ? check_write : check_read)(at.space, address, bytes, pc);
  count_access(at, write, address, bytes, pc);
}

// ---- asynchronous copies: they land as late as they may ---------------------------------------

void land(const PendingCopy& copy, const void* pc) {
  if (copy.from)
    memcpy(copy.to, copy.from, copy.bytes);
  else
    memset(copy.to, 0, copy.bytes);
  if (!machine().check) return;
  unmark_copy(copy.to, copy.bytes);
  check_write(Space::shared, copy.to, copy.bytes, pc);
}

}  // namespace

void read_wide(void* to, const void* from, size_t bytes) {
  access(false, from, bytes, true, __builtin_return_address(0));
  memcpy(to, from, bytes);
}

void write_wide(void* to, const void* from, size_t bytes) {
  access(true, to, bytes, true, __builtin_return_address(0));
  memcpy(to, from, bytes);
}

void copy_async(void* to_shared, const void* from_global, size_t bytes) {
  Machine& m = machine();
  Thread& t = *m.running;
  const void* pc = __builtin_return_address(0);
  Location to = locate(to_shared, bytes, true, "copy to", pc);
  bool global = true;
  if (from_global) {
    Location from = locate(from_global, bytes, true, "copy from", pc);
    global = from.space == Space::global;
    if (m.check) check_read(Space::global, from_global, bytes, pc);
    count_access(from, false, from_global, bytes, pc);
  }
  if (to.space != Space::shared || !global) fail("copy", "cp.async goes from global to shared memory", {nullptr, 0, pc});
  if (m.check) {
    check_write(Space::shared, to_shared, bytes, pc);
    mark_copy(to_shared, bytes, pc);
  }
  count_access(to, true, to_shared, bytes, pc);
  Counters* c = counters();
  if (c && from_global) c->async_copy_bytes += bytes;
  t.copies.push_back({static_cast<char*>(to_shared), static_cast<const char*>(from_global), bytes, t.copy_group});
}

void commit_copies() { machine().running->copy_group++; }

void wait_copies(int pending_groups) {
  Thread& t = *machine().running;
  std::vector<PendingCopy> pending;
  for (const PendingCopy& copy : t.copies) {
    if (copy.group < t.copy_group - pending_groups)
      land(copy, __builtin_return_address(0));
    else
      pending.push_back(copy);
  }
  t.copies.swap(pending);
}

}  // namespace simt

// ---- the names the compiler calls -------------------------------------------------------------

#define HOOK(name, write, bytes, aligned) \
  extern "C" void name(void* p) { simt::access(write, p, bytes, aligned, __builtin_return_address(0)); }

HOOK(__tsan_read1, false, 1, true)
HOOK(__tsan_read2, false, 2, true)
HOOK(__tsan_read4, false, 4, true)
HOOK(__tsan_read8, false, 8, true)
HOOK(__tsan_read16, false, 16, true)
HOOK(__tsan_write1, true, 1, true)
HOOK(__tsan_write2, true, 2, true)
HOOK(__tsan_write4, true, 4, true)
HOOK(__tsan_write8, true, 8, true)
HOOK(__tsan_write16, true, 16, true)
// Loads that the compiler knows to be unaligned: no GPU can make them in one piece.
HOOK(__tsan_unaligned_read2, false, 2, true)
HOOK(__tsan_unaligned_read4, false, 4, true)
HOOK(__tsan_unaligned_read8, false, 8, true)
HOOK(__tsan_unaligned_read16, false, 16, true)
HOOK(__tsan_unaligned_write2, true, 2, true)
HOOK(__tsan_unaligned_write4, true, 4, true)
HOOK(__tsan_unaligned_write8, true, 8, true)
HOOK(__tsan_unaligned_write16, true, 16, true)

extern "C" void __tsan_read_range(void* p, size_t bytes) {
  simt::access(false, p, bytes, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* p, size_t bytes) {
  simt::access(true, p, bytes, false, __builtin_return_address(0));
}
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  simt::access(false, from, bytes, false, __builtin_return_address(0));
  simt::access(true, to, bytes, false, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}
extern "C" void* __tsan_memset(void* to, int value, size_t bytes) {
  simt::access(true, to, bytes, false, __builtin_return_address(0));
  return memset(to, value, bytes);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
