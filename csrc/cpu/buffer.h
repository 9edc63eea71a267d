// Memory for activations between two kernels: [rows, size] of the storage type, aligned to 64 bytes.

#pragma once

#include <new>

#include "kernels.h"

namespace minillm::cpu {

class Buffer {
 public:
  Buffer(int64_t rows, int64_t size, int64_t width)
      : memory_(::operator new(rows * size * width, std::align_val_t{64})) {}
  ~Buffer() { ::operator delete(memory_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* get() const { return memory_; }

 private:
  void* memory_;
};

}  // namespace minillm::cpu
