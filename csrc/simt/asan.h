// The `asan` flavour: announces fibers and shared memory to AddressSanitizer.
//
// In this flavour kernels are compiled with -fsanitize=address,undefined and without the hooks (hooks.cpp). There
// are no counters and no race checks. Instead AddressSanitizer checks each access independently of the simulator:
// with redzones around torch's allocations and around each thread's local arrays.
//
// Without these calls it would take a switch of stacks for a wild jump, and the arena of shared memory for one
// large array. The functions are weak symbols: null if AddressSanitizer is not loaded, and then not called.

#pragma once

#include <cstddef>

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* address, size_t bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
}

namespace simt {

// A stack as AddressSanitizer describes it. `fake` is a value of AddressSanitizer, kept while another stack runs.
struct KnownStack {
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake = nullptr;
};

inline void leave_for(const KnownStack& next, KnownStack& self) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&self.fake, next.bottom, next.bytes);
}

// To call after a switch to `self`. Fills `before` with the stack that was left.
inline void arrive_on(const KnownStack& self, KnownStack& before) {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(self.fake, &before.bottom, &before.bytes);
}

inline void forbid(const void* address, size_t bytes) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(address, bytes);
}

inline void allow(const void* address, size_t bytes) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(address, bytes);
}

}  // namespace simt
