// What AddressSanitizer must be told of fibers and shared memory, in the `asan` flavour.
//
// There kernels are compiled with -fsanitize=address,undefined and without the hooks (hooks.cpp): no
// counters and no races, but every access is judged by somebody who knows nothing of our bookkeeping,
// by the redzones around torch's own allocations and around each thread's local arrays.
//
// Left alone it would take a switch of stacks for a wild jump, and the arena for one large array. Its
// functions are weak: null where it is not loaded, and then nothing is called.

#pragma once

#include <cstddef>

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* address, size_t bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
}

namespace simt {

// A stack as AddressSanitizer knows it. `fake` is its own, kept while another stack runs.
struct KnownStack {
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake = nullptr;
};

inline void leave_for(const KnownStack& next, KnownStack& self) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&self.fake, next.bottom, next.bytes);
}

// Back on `self`; `before` is filled with the stack that was left.
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
