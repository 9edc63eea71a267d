// Two ways to hand work to the threads, for code compiled once per path.
//
// `in_ranges` gives each thread one contiguous range: for work of equal cost. `hand_out` lets each thread
// take the next task when it is free, and know which one before it begins the last, so that its memory can be
// asked for early. Neither can change a result, as no task reads what another writes.

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

// The tasks of one thread: its own first one, then whichever nobody has taken.
struct Tasks {
  int64_t count, *untaken, rank, now, next;
  Tasks(int64_t all, int64_t* shared, int64_t own) : count(all), untaken(shared), rank(own), now(own), next(take()) {}
  bool left() const { return now < count; }
  bool last() const { return next >= count; }
  void advance() { now = next, next = left() ? take() : count; }

 private:
  int64_t take() { return __atomic_fetch_add(untaken, 1, __ATOMIC_RELAXED); }
};

// body(tasks) on each thread.
template <class Body>
void hand_out(int64_t count, const Body& body) {
  int64_t threads = smaller(count, thread_count()), untaken = threads;
  in_ranges(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t rank = begin; rank < end; rank++) {
      Tasks tasks(count, &untaken, rank);
      body(tasks);
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
