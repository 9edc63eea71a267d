// Threads that stay together for many short jobs.
//
// A layer has nine kernels, most of them shorter than 50 us; waking torch's threads and joining them costs 2 us
// and more each time. A team is gathered once, in one region of torch's pool, for a whole pass over the layers.
// Its leader runs the pass and posts each kernel's ranges; the members watch for them:
//
//     leader   post 1 | range 0 |  wait  | serial | post 3 | range 0 ...
//     member   watch  | range 1 | watch ......... |        | range 1 ...
//
// Nothing relies on a member being there. A range that its owner has not begun is taken by whoever is free, so
// a thread that the system holds up, or a pool that has fewer threads than it says, costs time only.

#include <atomic>
#include <thread>

#include "kernels.h"

namespace minillm {
namespace {

constexpr int64_t kSeats = 64;
constexpr uint64_t kOver = ~uint64_t{0};

void wait_a_moment(int64_t& waited) {
  if (++waited > 2000) return std::this_thread::yield();  // some 50 us: another program may need the core
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  void post(int64_t begin, int64_t end, int64_t parts, RangeBody body, void* context) {
    job_ = {begin, end, (end - begin + parts - 1) / parts, body, context};
    uint64_t number = posted_.load(std::memory_order_relaxed) + 1;
    posted_.store(number);
    work(0, number);
    // All ranges are begun. Closing the job and waiting until nobody is inside makes them done: a member enters
    // first and looks second, so it either is seen here or sees that the job is closed.
    posted_.store(number + 1);
    for (int64_t waited = 0; inside_.load();) wait_a_moment(waited);
  }

  void follow(int64_t seat) {
    uint64_t seen = 0;
    for (int64_t waited = 0;;) {
      uint64_t number = posted_.load(std::memory_order_acquire);
      if (number == kOver) return;
      if (number == seen || number % 2 == 0) {
        wait_a_moment(waited);
        continue;
      }
      inside_.fetch_add(1);
      if (posted_.load() == number) work(seat, number);
      inside_.fetch_sub(1);
      seen = number;
      waited = 0;
    }
  }

  void dismiss() { posted_.store(kOver); }

 private:
  struct Job {
    int64_t begin, end, share;
    RangeBody body;
    void* context;
  };

  // Own range first, then those whose owners are not here.
  void work(int64_t seat, uint64_t number) {
    int64_t parts = (job_.end - job_.begin + job_.share - 1) / job_.share;
    for (int64_t i = 0; i < parts; i++) {
      int64_t part = (seat + i) % parts, begin = job_.begin + part * job_.share;
      if (taken_[part].by_job.exchange(number) == number) continue;
      job_.body(begin, begin + job_.share < job_.end ? begin + job_.share : job_.end, job_.context);
    }
  }

  struct alignas(64) Seat {
    std::atomic<uint64_t> by_job{0};
  };
  alignas(64) std::atomic<uint64_t> posted_{0};  // odd: that job is open
  Job job_ = {};
  alignas(64) std::atomic<int64_t> inside_{0};
  Seat taken_[kSeats];
};

thread_local Team* led = nullptr;  // by this thread

struct Gathering {
  Team team;
  void (*work)(void*);
  void* context;
};

void take_part(int64_t begin, int64_t, void* context) {
  Gathering& gathering = *static_cast<Gathering*>(context);
  if (begin) return gathering.team.follow(begin);
  struct Lead {
    explicit Lead(Team& team) { led = &team; }
    ~Lead() { led->dismiss(), led = nullptr; }
  } lead(gathering.team);
  gathering.work(gathering.context);
}

}  // namespace

bool in_team() { return led; }

void with_team(void (*work)(void*), void* context) {
  int64_t threads = thread_count();
  if (threads < 2 || led) return work(context);
  Gathering gathering = {{}, work, context};
  pool_ranges(0, threads < kSeats ? threads : kSeats, 1, take_part, &gathering);
}

void parallel_ranges(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  if (!led) return pool_ranges(begin, end, grain, body, context);
  int64_t threads = thread_count(), parts = (end - begin + grain - 1) / grain;
  parts = parts < threads ? parts : threads;
  led->post(begin, end, parts < kSeats ? parts : kSeats, body, context);
}

}  // namespace minillm
