// A fiber: a stack of its own and a place in the code, switched to and from by hand.
//
// A simulated GPU thread must stop in the middle of a kernel (at a barrier, at a shuffle) and go on
// later. An operating-system thread could do that, at microseconds a switch; a fiber switch saves six
// registers and takes nanoseconds, and which fiber runs next is ours to decide, so a run can be
// repeated exactly.
//
//     scheduler            fiber 0              fiber 1
//     resume() ----------> kernel ...
//       <----------------- suspend() at a barrier
//     resume() -------------------------------> kernel ...

#pragma once

#include <cstddef>
#include <cstdint>

#include "asan.h"

namespace simt {

class Fiber {
 public:
  using Entry = void (*)();

  // The next `resume` calls `entry` on an empty stack. `entry` ends by suspending for good.
  void prepare(Entry entry);

  // Run this fiber until it suspends. Called by the scheduler, never by a fiber.
  void resume();

  // Go back to whoever resumed the running fiber.
  static void suspend();

  bool owns(const void* address) const {
    uintptr_t p = reinterpret_cast<uintptr_t>(address), low = reinterpret_cast<uintptr_t>(stack_);
    return p >= low && p < low + kStackBytes;
  }

 private:
  static constexpr size_t kStackBytes = 64 << 10;

  void begin(Entry entry);
  static void enter();

  void* context_ = nullptr;  // where it stopped: its stack pointer, or its ucontext_t
  char* stack_ = nullptr;    // lowest byte; below it lies a page that may not be touched
  KnownStack known_;
  Entry entry_ = nullptr;
};

}  // namespace simt
