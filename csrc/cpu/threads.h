// Two ways to hand work to the threads, for code compiled once per path.
//
// `in_ranges` gives each thread one contiguous range: for work of equal cost, where long runs through
// memory matter. `one_by_one` lets each thread take the next task when it is free: for tasks of
// unequal cost. Neither can change a result, as no task reads what another writes.

#pragma once

#include <new>

#include "kernels.h"
#include "vec.h"

namespace minillm {
namespace {

template <class Body>
void in_ranges(int64_t count, int64_t grain, const Body& body) {
  if (count <= grain) {
    if (count > 0) body(0, count);
    return;
  }
  parallel_ranges(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<Body*>(&body));
}

template <class Body>
void one_by_one(int64_t count, const Body& body) {
  int64_t next = 0;
  in_ranges(smaller(count, thread_count()), 1, [&](int64_t, int64_t) {
    for (;;) {
      int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= count) return;
      body(task);
    }
  });
}

// Memory for the time of one kernel, aligned for whole registers.
template <class T>
struct Scratch {
  T* data;
  explicit Scratch(int64_t count)
      : data(static_cast<T*>(::operator new(larger(count, 1) * sizeof(T), std::align_val_t{64}))) {}
  ~Scratch() { ::operator delete(data, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

}  // namespace
}  // namespace minillm
