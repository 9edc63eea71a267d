// A parallel region: threads that stay ready for many short parallel loops.
//
// A layer has nine kernels, and most take less than 50 us; waking torch's threads and joining them costs 2 us or more
// each time. So a region is entered once, on torch's pool, for a whole pass over the layers. Rank 0 runs the pass and
// publishes the loop of each kernel. The other ranks are workers: they spin until there is a loop.
//
//     rank 0   loop 1 | range 0 |  wait  | serial | loop 3 | range 0 ...
//     worker   spin   | range 1 | spin .......... |        | range 1 ...
//
// No loop depends on a worker. A range that its owner has not begun is claimed by any free thread. So a thread that
// the operating system delays, or a pool with fewer threads than it reports, costs only time.

#include <atomic>
#include <thread>

#include "floats.h"
#include "kernels.h"

namespace minillm::cpu {
namespace {

constexpr int64_t kMaxThreads = 64;
constexpr uint64_t kStopped = ~uint64_t{0};

void spin(int64_t& spins) {
  if (++spins > 2000) return std::this_thread::yield();  // after about 50 us another program may need the core
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Region {
 public:
  // Called by rank 0: runs one loop, which is complete on return.
  void run(int64_t begin, int64_t end, int64_t parts, RangeBody body, void* context) {
    loop_ = {begin, end, (end - begin + parts - 1) / parts, body, context};
    uint64_t number = published_.load(std::memory_order_relaxed) + 1;
    published_.store(number);
    work(0, number);
    // All ranges are begun. They are complete once the loop is closed and no worker is inside. A worker first enters
    // (inside_) and then reads published_: so either it is counted here, or it sees that the loop is closed.
    published_.store(number + 1);
    for (int64_t spins = 0; inside_.load();) spin(spins);
  }

  // Called by the other ranks: runs ranges of loops until `stop`.
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

  // The thread's own range first, then ranges that their owners have not begun.
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
  alignas(64) std::atomic<uint64_t> published_{0};  // number of the loop; odd: the loop is open
  Loop loop_ = {};
  alignas(64) std::atomic<int64_t> inside_{0};
  Claim claimed_[kMaxThreads];
};

thread_local Region* current_region = nullptr;  // set on the thread that is rank 0 of a region

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
  StandardFloats scope;
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
