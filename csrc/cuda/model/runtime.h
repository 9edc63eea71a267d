// What a pass asks of the CUDA runtime besides launches. Only `wait` and `Event::wait` block; copies return at once,
// because the host's side of them is pinned memory.
//
// In the simulator a copy to the host arrives as late as is legal, at the next wait, so a missing wait shows; and the
// simulator counts all of these calls (Profile in minillm/ops/simt/machine.py).

#pragma once

#include <cstddef>
#include <functional>

#include "kernels.h"

namespace minillm::cuda {

// Host memory that the GPU's copy engine can reach.
class Pinned {
 public:
  Pinned() = default;
  Pinned(const Pinned&) = delete;
  ~Pinned();
  // At least `bytes`; what was there before is lost if the memory must grow.
  char* reserve(size_t bytes);

 private:
  char* memory_ = nullptr;
  size_t bytes_ = 0;
};

void copy_to_device(void* to, const void* pinned, size_t bytes, Stream stream);
void copy_to_host(void* pinned, const void* from, size_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
void wait(Stream stream);  // until all that the stream was given is done

// A point in a stream that the host can wait for.
class Event {
 public:
  Event() = default;
  Event(const Event&) = delete;
  ~Event();
  void record(Stream stream);
  void wait();  // returns at once if nothing is recorded, or if the stream has been waited for since (`clear`)
  void clear() { recorded_ = false; }

 private:
  void* event_ = nullptr;
  bool recorded_ = false;
};

// Work that is repeated with the same addresses and sizes. The first run gives it to the stream, the second captures it
// as a CUDA graph, and from then on a run is one launch. The simulator has no graphs: it runs the work each time.
class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  ~Graph();
  void run(Stream stream, const std::function<void(Stream)>& work);

 private:
  int runs_ = 0;
  void* captured_ = nullptr;
};

}  // namespace minillm::cuda
