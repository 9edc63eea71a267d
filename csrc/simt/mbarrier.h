// mbarrier: a barrier in shared memory that counts arrivals of threads and bytes of copies (sm_90).
//
//     phase 0   pending arrivals 1, bytes 0     mbarrier_init(bar, 1)
//               pending arrivals 0, bytes 4096  mbarrier_arrive_expect(bar, 4096)
//               pending arrivals 0, bytes 0     a copy of 4096 bytes has landed: the phase is complete
//     phase 1   pending arrivals 1, bytes 0
//
// mbarrier_wait(bar, parity) waits until the phase of this parity (0: phases 0, 2, ..) is complete. On a barrier of
// which no phase is complete, parity 1 does not wait: it stands for the phase before the first. What a thread wrote
// before it arrived is seen by those that wait. PTX ISA: mbarrier.
//
// Left out: mbarrier.inval, arrivals that lower the count for good, clusters, and try_wait without a loop.

#pragma once

#include "simt.h"

struct alignas(8) Mbarrier {
  uint64_t state;  // only the words below know what it means
};

namespace simt {
void init_mbarrier(Mbarrier* at, unsigned count, Where where);
void arrive(Mbarrier* at, unsigned expected_bytes, Where where);
void wait_mbarrier(Mbarrier* at, unsigned parity, Where where);
void fence_mbarriers();
void fence_proxy();
}  // namespace simt

// By one thread, before all others use it; `count` arrivals complete a phase.
inline void mbarrier_init(Mbarrier& bar, unsigned count, simt::Where where = simt::Where::current()) {
  simt::init_mbarrier(&bar, count, where);
}

// Makes the calling thread's mbarrier_init visible to copies. Other threads need a __syncthreads after it.
inline void fence_mbarrier_init() { simt::fence_mbarriers(); }

// Makes what the calling thread has read and written in shared memory visible to bulk copies and wgmma, which take
// another way to it (the async proxy).
inline void fence_proxy_async() { simt::fence_proxy(); }

inline void mbarrier_arrive(Mbarrier& bar, simt::Where where = simt::Where::current()) { simt::arrive(&bar, 0, where); }

// Arrives, and says that copies will bring so many bytes in this phase.
inline void mbarrier_arrive_expect(Mbarrier& bar, unsigned bytes, simt::Where where = simt::Where::current()) {
  simt::arrive(&bar, bytes, where);
}

inline void mbarrier_wait(Mbarrier& bar, unsigned parity, simt::Where where = simt::Where::current()) {
  simt::wait_mbarrier(&bar, parity, where);
}
