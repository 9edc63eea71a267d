// Two parallel loops, for code compiled once per instruction set.
//
// `parallel_for` gives each thread one contiguous range: for iterations of equal cost. `parallel_tasks` lets each
// thread take the next task when it is free. A thread knows its next task before it begins the present one, so that
// it can prefetch the memory of the next. Neither can change a result, as no task reads what another writes.

#pragma once

#include <new>

#include "kernels.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

// body(begin, end) over ranges of 0 .. count; one thread for up to `grain` iterations.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= grain) {
    if (count > 0) body(0, count);
    return;
  }
  parallel_ranges(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<Body*>(&body));
}

// The tasks of one thread: first the one of its own rank, then whichever nobody has taken.
struct TaskQueue {
  int64_t count, *untaken, rank, now, next;
  TaskQueue(int64_t all, int64_t* shared, int64_t own)
      : count(all), untaken(shared), rank(own), now(own), next(take()) {}
  bool left() const { return now < count; }
  bool last() const { return next >= count; }
  void advance() { now = next, next = left() ? take() : count; }

 private:
  int64_t take() { return __atomic_fetch_add(untaken, 1, __ATOMIC_RELAXED); }
};

// body(tasks) on each thread.
template <class Body>
void parallel_tasks(int64_t count, const Body& body) {
  int64_t threads = smaller(count, thread_count()), untaken = threads;
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t rank = begin; rank < end; rank++) {
      TaskQueue tasks(count, &untaken, rank);
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
}  // namespace minillm::cpu
