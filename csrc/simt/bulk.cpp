// Bulk copies under way. They land as late as is legal: when no thread of the block can continue and one waits for
// an mbarrier that lacks nothing but bytes. Then copies land one by one until a phase is complete.
//
//     issued    the shared bytes are marked: nobody may read or write them (check)
//     landed    they are written, by the mbarrier's copies as an agent (agents.cpp): only threads that waited for
//               it may read them
//
// Bytes are counted when a copy is issued, exactly those inside the tensor. Tensor copies are in tensor_map.cpp.

#include "bulk.h"

#include <cstring>
#include <deque>

#include "async.h"

namespace simt {
namespace {

struct Copy {
  std::vector<Piece> pieces;
  const Mbarrier* bar;
  const void* pc;
  size_t bytes;
  int rank;  // of the thread that issued it
};

std::deque<Copy> under_way;

void require_spaces(const Location& at, Space wanted, const void* pc) {
  if (at.space != wanted) fail("copy", "a bulk copy goes from global to shared memory", {nullptr, 0, pc});
}

// A run of bytes in global memory; sectors of 32 bytes, as traffic.cpp counts them.
void read_run(const char* from, size_t bytes, const void* pc) {
  Location at = locate(from, bytes, false, "bulk copy from", pc);
  require_spaces(at, Space::global, pc);
  if (machine().check) check_read(Space::global, from, bytes, pc);
  Counters* c = counters();
  if (!c) return;
  uintptr_t first = reinterpret_cast<uintptr_t>(from), last = first + bytes - 1;
  c->global_read_bytes += bytes;
  c->async_copy_bytes += bytes;
  c->global_read_sectors += last / 32 - first / 32 + 1;
  at.tensor->moved->read_bytes += bytes;
}

void read_all(const std::vector<Piece>& pieces, const void* pc) {
  const char* from = nullptr;
  size_t bytes = 0;
  for (const Piece& piece : pieces) {
    if (bytes && piece.bytes && piece.from == from + bytes) {
      bytes += piece.bytes;
      continue;
    }
    if (bytes) read_run(from, bytes, pc);
    from = piece.from;
    bytes = piece.bytes;
  }
  if (bytes) read_run(from, bytes, pc);
}

void claim(const Piece& piece, const void* pc) {
  require_spaces(locate(piece.to, piece.all(), false, "bulk copy to", pc), Space::shared, pc);
  if (Counters* c = counters()) c->shared_write_bytes += piece.all();
  if (!machine().check) return;
  require_proxy_fence(piece.to, piece.all(), "a bulk copy overwrites", pc);
  check_write(Space::shared, piece.to, piece.all(), pc);
  mark_copy(piece.to, piece.all(), pc);
}

// True if a phase is complete now.
bool land(const Copy& copy) {
  unsigned agent = agent_of(copy.bar);
  uint32_t moment = next_moment(agent);
  for (const Piece& piece : copy.pieces) {
    memset(piece.to, 0, piece.all());
    memcpy(piece.to + piece.zeros_before, piece.from, piece.bytes);
    if (!machine().check) continue;
    unmark_copy(piece.to, piece.all());
    agent_wrote(agent, moment, piece.to, piece.all(), copy.pc);
  }
  return complete_bytes(copy.bar, copy.bytes, moment);
}

}  // namespace

void begin_block_copies() {
  if (machine().check)  // those of a block that ended with an error
    for (const Copy& copy : under_way)
      for (const Piece& piece : copy.pieces) unmark_copy(piece.to, piece.all());
  under_way.clear();
}

void start_bulk_copy(std::vector<Piece> pieces, Mbarrier* bar, const void* pc) {
  require_mbarrier_for_copy(bar, pc);
  read_all(pieces, pc);
  size_t bytes = 0;
  for (const Piece& piece : pieces) {
    claim(piece, pc);
    bytes += piece.all();
  }
  under_way.push_back({std::move(pieces), bar, pc, bytes, machine().running->rank});
}

void bulk_copy(void* to, const void* from, size_t bytes, Mbarrier* bar) {
  const void* pc = __builtin_return_address(0);
  Place here{nullptr, 0, pc};
  uintptr_t places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (places % 16)
    fail("misaligned", "a bulk copy begins at multiples of 16 bytes: from " + describe(from) + " to " + describe(to), here);
  if (bytes % 16 || !bytes) fail("copy", "a bulk copy moves 16, 32, .. bytes, not " + std::to_string(bytes), here);
  start_bulk_copy({{static_cast<char*>(to), static_cast<const char*>(from), 0, bytes, 0}}, bar, pc);
}

bool land_a_copy() {
  for (size_t i = 0; i < under_way.size();) {
    if (!somebody_waits_for_bytes(under_way[i].bar)) {
      i++;
      continue;
    }
    Copy copy = std::move(under_way[i]);
    under_way.erase(under_way.begin() + i);
    if (land(copy)) return true;
    std::string wrong = too_many_bytes(copy.bar);
    if (!wrong.empty()) return !report("mbarrier", wrong, copy.rank, copy.pc);
  }
  return false;
}

bool report(const char* kind, const std::string& message, int rank, const void* pc) {
  Machine& m = machine();
  m.failed = true;
  m.error = {kind, m.kernel, message, m.block, m.threads[rank]->index, {nullptr, 0, pc}, "", {}};
  return false;
}

bool end_block_async() {
  if (under_way.empty()) return end_block_wgmma();
  const Copy& copy = under_way.front();
  std::string to = describe(copy.pieces[0].to);
  return report("copy not waited for", "the block ends while a copy to " + to + " is under way", copy.rank, copy.pc);
}

void begin_block_async() {
  begin_block_agents();
  begin_block_copies();
  begin_block_mbarriers();
  begin_block_wgmma();
  begin_block_races();
}

}  // namespace simt
