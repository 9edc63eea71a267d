// Parallel loops with threads that stay: one parallel region for many short loops.
//
// A layer has nine kernels, most of them shorter than 50 us; waking torch's threads and joining them costs 2 us
// and more each time. A region is entered once, on torch's pool, for a whole pass over the layers. Rank 0 runs the
// pass and publishes each kernel's loop; the other ranks are workers, which spin until there is a loop:
//
//     rank 0   loop 1 | range 0 |  wait  | serial | loop 3 | range 0 ...
//     worker   spin   | range 1 | spin .......... |        | range 1 ...
//
// No loop relies on a worker being there. A range that its owner has not begun is claimed by whoever is free, so
// a thread that the system holds up, or a pool that has fewer threads than it says, costs time only.

#include <atomic>
#include <thread>

#include "kernels.h"

namespace minillm::cpu {
namespace {

constexpr int64_t kMaxThreads = 64;
constexpr uint64_t kStopped = ~uint64_t{0};

void spin(int64_t& spins) {
  if (++spins > 2000) return std::this_thread::yield();  // some 50 us: another program may need the core
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Region {
 public:
  // Rank 0: one loop, done on return.
  void run(int64_t begin, int64_t end, int64_t parts, RangeBody body, void* context) {
    loop_ = {begin, end, (end - begin + parts - 1) / parts, body, context};
    uint64_t number = published_.load(std::memory_order_relaxed) + 1;
    published_.store(number);
    work(0, number);
    // All ranges are begun. Closing the loop and waiting until no worker is inside makes them done: a worker enters
    // first and looks second, so it either is seen here or sees that the loop is closed.
    published_.store(number + 1);
    for (int64_t spins = 0; inside_.load();) spin(spins);
  }

  // The other ranks, until `stop`.
  void work_until_stopped(int64_t rank) {
    uint64_t seen = 0;
    for (int64_t spins = 0;;) {
      uint64_t number = published_.load(std::memory_order_acquire);
      if (number == kStopped) return;
      if (number == seen || number % 2 == 0) {
        spin(spins);
        continue;
      }
      inside_.fetch_add(1);
      if (published_.load() == number) work(rank, number);
      inside_.fetch_sub(1);
      seen = number;
      spins = 0;
    }
  }

  void stop() { published_.store(kStopped); }

 private:
  struct Loop {
    int64_t begin, end, share;
    RangeBody body;
    void* context;
  };

  // Own range first, then those whose owners are not here.
  void work(int64_t rank, uint64_t number) {
    int64_t parts = (loop_.end - loop_.begin + loop_.share - 1) / loop_.share;
    for (int64_t i = 0; i < parts; i++) {
      int64_t part = (rank + i) % parts, begin = loop_.begin + part * loop_.share;
      if (claimed_[part].in_loop.exchange(number) == number) continue;
      loop_.body(begin, begin + loop_.share < loop_.end ? begin + loop_.share : loop_.end, loop_.context);
    }
  }

  struct alignas(64) Claim {
    std::atomic<uint64_t> in_loop{0};
  };
  alignas(64) std::atomic<uint64_t> published_{0};  // odd: that loop is open
  Loop loop_ = {};
  alignas(64) std::atomic<int64_t> inside_{0};
  Claim claimed_[kMaxThreads];
};

thread_local Region* current_region = nullptr;  // of which this thread is rank 0

struct Entry {
  Region region;
  void (*work)(void*);
  void* context;
};

void enter(int64_t rank, int64_t, void* context) {
  Entry& entry = *static_cast<Entry*>(context);
  if (rank) return entry.region.work_until_stopped(rank);
  struct Scope {
    explicit Scope(Region& region) { current_region = &region; }
    ~Scope() { current_region->stop(), current_region = nullptr; }
  } scope(entry.region);
  entry.work(entry.context);
}

}  // namespace

bool in_parallel_region() { return current_region; }

void parallel_region(void (*work)(void*), void* context) {
  int64_t threads = thread_count();
  if (threads < 2 || current_region) return work(context);
  Entry entry = {{}, work, context};
  pool_ranges(0, threads < kMaxThreads ? threads : kMaxThreads, 1, enter, &entry);
}

void parallel_ranges(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  if (!current_region) return pool_ranges(begin, end, grain, body, context);
  int64_t threads = thread_count(), parts = (end - begin + grain - 1) / grain;
  parts = parts < threads ? parts : threads;
  current_region->run(begin, end, parts < kMaxThreads ? parts : kMaxThreads, body, context);
}

}  // namespace minillm::cpu
