#include "threads.h"

namespace bitttt {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kActiveWait{100};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What this thread fetches while it waits.
thread_local Ahead ahead;

// Whether `condition` came true before the time for active waiting was over.
template <typename Condition>
bool wait_actively(Condition condition) {
  const auto end = Clock::now() + kActiveWait;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      if (!ahead.fetch()) pause();
    }
  } while (Clock::now() < end);
  return condition();
}

// Tasks that follow one another, of which one thread takes the first and others the last. A line of
// the cache for each.
class alignas(64) Range {
 public:
  void set(int64_t first, int64_t last) { left_ = first << 32 | last; }
  // A task, or -1 if none is left.
  int64_t take_first() { return take(1, 0); }
  int64_t take_last() { return take(0, 1); }

 private:
  std::atomic<int64_t> left_{0};

  int64_t take(int64_t from_first, int64_t from_last) {
    int64_t left = left_.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t first = left >> 32, last = left & 0xffffffff;
      if (first >= last) return -1;
      const int64_t rest = (first + from_first) << 32 | (last - from_last);
      if (left_.compare_exchange_weak(left, rest)) return from_first ? first : last - 1;
    }
  }
};

struct Work {
  std::function<void(int64_t)> task;
  int64_t count;
  std::vector<Range> ranges;  // one for each thread
  Reads next;                 // of the call after this one
  std::atomic<int64_t> helpers{0}, done{0};
  std::mutex mutex;
  std::condition_variable all_done;

  Work(std::function<void(int64_t)> task, int64_t count, int64_t threads, const Reads& next)
      : task(std::move(task)), count(count), ranges(threads), next(next) {
    for (int64_t t = 0; t < threads; ++t) {
      ranges[t].set(count * t / threads, count * (t + 1) / threads);
    }
  }
  bool is_done() const { return done.load(std::memory_order_acquire) == count; }
  void help() { run(helpers.fetch_add(1) + 1); }
  // The thread that calls has the first range.
  void run(int64_t own) {
    const int64_t size = ranges.size();
    int64_t finished = 0, i;
    for (; (i = ranges[own].take_first()) >= 0; ++finished) task(i);
    for (int64_t t = own + 1; t < own + size; ++t) {
      for (; (i = ranges[t % size].take_last()) >= 0; ++finished) task(i);
    }
    if (next.count) ahead = Ahead(next, own, size);
    if (finished == 0 || done.fetch_add(finished) + finished < count) return;
    std::lock_guard<std::mutex> lock(mutex);  // or the waiter could miss the call
    all_done.notify_all();
  }
};

// Where a helper that waits actively is handed its next work.
struct Seat {
  enum State { kEmpty, kWaiting, kTaken, kOffered };
  std::atomic<State> state{kEmpty};
  std::shared_ptr<Work> work;

  bool offer(const std::shared_ptr<Work>& offered) {
    if (state.load(std::memory_order_relaxed) != kWaiting) return false;  // without a locked access
    State expected = kWaiting;
    if (!state.compare_exchange_strong(expected, kTaken)) return false;
    work = offered;
    state.store(kOffered, std::memory_order_release);
    return true;
  }
  // Waits for work and does it, until none has come for a while.
  void serve() {
    const auto has_work = [&] { return state.load(std::memory_order_acquire) == kOffered; };
    for (;;) {
      if (!wait_actively(has_work)) {
        State expected = kWaiting;
        if (state.compare_exchange_strong(expected, kEmpty)) return;
        while (!has_work()) pause();  // someone is just offering it
      }
      const std::shared_ptr<Work> mine = std::move(work);
      state.store(kWaiting, std::memory_order_release);
      mine->help();
    }
  }
};

constexpr int kSeats = 256;
Seat* seats() {
  static Seat all[kSeats];
  return all;
}

void wait_for_work() {
  for (int i = 0; i < kSeats; ++i) {
    Seat::State expected = Seat::kEmpty;
    if (seats()[i].state.compare_exchange_strong(expected, Seat::kWaiting)) {
      return seats()[i].serve();
    }
  }
}

}  // namespace

void run_all(xla::ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> task,
             Wait wait, const Reads& reads) {
  const int64_t threads = std::max<int64_t>(std::min<int64_t>(pool.num_threads(), count), 1);
  auto work = std::make_shared<Work>(std::move(task), count, threads,
                                     reads.count ? note_reads(reads) : Reads());
  int64_t helpers = threads - 1;
  if (wait == Wait::kActively) {
    for (int i = 0; i < kSeats && helpers > 0; ++i) helpers -= seats()[i].offer(work);
  }
  for (; helpers > 0; --helpers) {
    pool.Schedule([work, wait] {
      work->help();
      if (wait == Wait::kActively) wait_for_work();
    });
  }
  work->run(0);
  if (wait == Wait::kActively && wait_actively([&] { return work->is_done(); })) return;
  std::unique_lock<std::mutex> lock(work->mutex);
  work->all_done.wait(lock, [&] { return work->is_done(); });
}

}  // namespace bitttt
