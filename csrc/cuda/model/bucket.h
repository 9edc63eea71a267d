// Steps of a fixed size, which a GPU repeats as one captured graph.
//
// A decode step of a small model has some two hundred launches of a few microseconds each: the host cannot start them
// as fast as the GPU finishes them. A graph starts all of them at once. It repeats the same kernels with the same
// addresses and sizes, so a step is filled up to a size of a short list, and its numbers are written to fixed places:
//
//     sequences   a  b  c  .      3 of 4: the fourth has slot -1, kv_len 0, and a block table of zeros
//     rows        1  1  1  1      in a verification pass K + 1 each
//     table       [ 5 9 2 . ]     each row as wide as the next power of 4
//
// A filled-up row writes nothing to the cache and no row reads it, so the others keep their bits. Captured are the copy
// of the input, all kernels, and the copy of the results; after the launch the host waits once. A shape is run without
// a graph the first time, when CUDA may still load kernels, and captured the second time.
//
// Left out: steps with repetition penalties, whose input has any length, and steps whose sequences differ in rows.

#pragma once

#include <map>

#include "device.h"
#include "pass.h"

namespace minillm::cuda {

struct Shape {
  int64_t seqs, rows_each, table_width, num_token_ids;
  int64_t rows() const { return seqs * rows_each; }
  auto key() const { return std::tuple(seqs, rows_each, table_width, num_token_ids); }
  bool operator<(const Shape& other) const { return key() < other.key(); }
};

class Buckets {
 public:
  // The numbers of sequences that a step is filled up to, rising; none: steps run as they are.
  Buckets(std::vector<int64_t> sizes, bool tensor_cores) : sizes_(std::move(sizes)), tensor_cores_(tensor_cores) {}

  // The shape for this step, or none if it cannot be filled up to one.
  std::optional<Shape> find(const PassArgs& args, const Draws& draws) const;

  // Runs the step and waits for it. Tokens, flags and logits are those of the rows of `args`.
  void run(const BoundModel& bound, const Shape& shape, const PassArgs& args, const Draws& draws, Stream stream,
           int64_t* tokens, bool* finite, void* logits);

 private:
  struct Places;
  Places reserve(const BoundModel& bound, const Shape& shape);

  std::vector<int64_t> sizes_;
  const bool tensor_cores_;
  Pinned input_, output_;
  DeviceMemory memory_;
  char* start_ = nullptr;            // of the memory that graphs were captured with
  const void *host_in_ = nullptr, *host_out_ = nullptr;
  std::map<Shape, Graph> graphs_;
};

}  // namespace minillm::cuda
