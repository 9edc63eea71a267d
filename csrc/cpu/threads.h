// Two parallel loops, for code compiled once per instruction set.
//
// `parallel_for` gives each thread one contiguous range: for iterations of equal cost. In `parallel_tasks` each free
// thread takes the next task. A thread reserves its next task before it begins the current one, so that it can
// prefetch the next task's memory. Neither loop can change a result, since no task reads what another task writes.

#pragma once

#include <new>

#include "floats.h"
#include "kernels.h"
#include "vec.h"

namespace minillm::cpu {
namespace {

// Calls body(begin, end) for ranges of [0, count); up to `grain` iterations run on the calling thread.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= grain) {
    StandardFloats scope;
    if (count > 0) body(0, count);
    return;
  }
  parallel_ranges(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<Body*>(&body));
}

// The tasks of one thread: first the task with the number of its rank, then always the next task not yet taken.
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

// Calls body(tasks) on each thread.
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

// Temporary memory of one kernel, aligned to 64 bytes.
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
