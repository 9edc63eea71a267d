// A fiber: a stack and a position in the code, switched explicitly by the scheduler.
//
// A simulated GPU thread must stop in the middle of a kernel (at a barrier, at a shuffle) and continue later. An
// operating-system thread could do that, but a switch takes microseconds. A fiber switch saves six registers and
// takes nanoseconds. The scheduler chooses the next fiber, so a run can be repeated exactly.
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

  // The next `resume` calls `entry` on an empty stack. `entry` must not return: it ends with a `suspend`.
  void prepare(Entry entry);

  // Runs this fiber until it suspends. Called by the scheduler, never by a fiber.
  void resume();

  // Returns from the running fiber to the scheduler, which called `resume`.
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
  char* stack_ = nullptr;    // lowest byte; the guard page lies below it
  KnownStack known_;
  Entry entry_ = nullptr;
};

}  // namespace simt
