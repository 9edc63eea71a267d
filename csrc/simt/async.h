// Behind the asynchronous words: what their files ask of each other, of the scheduler and of the race checker.
//
//     mbarrier.cpp   phases, arrivals, bytes          which threads wait
//     bulk.cpp       bulk copies under way            they land when no thread can continue: as late as is legal
//     wgmma.cpp      multiplications under way        their results land at the wait
//     agents.cpp     (check only) copies and tensor cores, which make accesses as threads do

#pragma once

#include "../cuda/common/tiles.h"
#include "machine.h"

struct Mbarrier;
enum class Major;

namespace simt {

// Records an error where no thread runs; `rank` is the thread it belongs to. Returns false.
bool report(const char* kind, const std::string& message, int rank, const void* pc);

// ---- agents.cpp -------------------------------------------------------------------------------

void begin_block_agents();
unsigned new_agent(const std::string& name);  // its rank
uint32_t next_moment(unsigned agent);
void note_moment(Clocks& clocks, unsigned agent, uint32_t moment);  // the agent's accesses are known up to `moment`

// ---- mbarrier.cpp -----------------------------------------------------------------------------

void begin_block_mbarriers();
void require_mbarrier_for_copy(const Mbarrier* at, const void* pc);
// So many bytes have landed, at this moment of agent_of(at). True if this completed a phase.
bool complete_bytes(const Mbarrier* at, size_t bytes, uint32_t moment);
bool somebody_waits_for_bytes(const Mbarrier* at);  // and all arrivals of the phase are there
unsigned agent_of(const Mbarrier* at);
std::string too_many_bytes(const void* at);  // landed, with all arrivals there; "" if not

// ---- bulk.cpp ---------------------------------------------------------------------------------

// Part of a copy: zeros, then bytes from global memory, then zeros.
struct Piece {
  char* to;
  const char* from;
  size_t zeros_before, bytes, zeros_after;

  size_t all() const { return zeros_before + bytes + zeros_after; }
};
void begin_block_copies();
size_t swizzled(size_t address, Swizzle swizzle);  // tensor_map.cpp
void start_bulk_copy(std::vector<Piece> pieces, Mbarrier* bar, const void* pc);

// ---- warpgroup.cpp ----------------------------------------------------------------------------

// The 128 threads of the calling warpgroup meet. For the last of them true, and `lanes` are the threads; the others
// come back, with false, after it has made them ready.
bool meet_warpgroup(const char* name, void* operand, Where where, Thread* const** lanes);
void release_warpgroup(Thread* const* lanes);

// ---- matrix_layout.cpp ------------------------------------------------------------------------

constexpr size_t kChunk = 16;  // bytes, 8 numbers: what lies together in every layout
struct SharedMatrix {
  std::vector<const char*> chunks;  // row by row
  int chunks_per_row;
};
SharedMatrix find_matrix(MatrixDescriptor matrix, Major major, int extent, const void* pc);

// ---- wgmma.cpp --------------------------------------------------------------------------------

void begin_block_wgmma();
bool end_block_wgmma();

}  // namespace simt
