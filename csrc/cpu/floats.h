// Standard floating point while a kernel runs: round to nearest, and no number is flushed to zero.
//
//     caller's thread    [ caller's mode ][ standard ............ ][ caller's mode ]
//     other threads      [ their mode    ][ standard: their range ][ their mode    ]
//
// The mode belongs to a thread, and any library may change it: torch.set_flush_denormal does, and so does loading a
// library that was built with -ffast-math. Then the same sum would have other bits in one thread than in another.

#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace minillm::cpu {

class StandardFloats {
 public:
  StandardFloats() : before_(mode()) { set(kStandard); }
  ~StandardFloats() { set(before_); }
  StandardFloats(const StandardFloats&) = delete;
  StandardFloats& operator=(const StandardFloats&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kStandard = 0x1f80;  // all exceptions masked, nothing else
  static uint64_t mode() { return _mm_getcsr(); }
  static void set(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kStandard = 0;
  static uint64_t mode() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
  static constexpr uint64_t kStandard = 0;
  static uint64_t mode() { return kStandard; }
  static void set(uint64_t) {}
#endif

  uint64_t before_;
};

}  // namespace minillm::cpu
