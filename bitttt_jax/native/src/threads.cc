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

// Whether `condition` came true before the time for active waiting was over.
template <typename Condition>
bool wait_actively(Condition condition) {
  const auto end = Clock::now() + kActiveWait;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return condition();
}

struct Work {
  std::function<void(int64_t)> task;
  int64_t count;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable all_done;

  bool is_done() const { return done.load(std::memory_order_acquire) == count; }
  void run() {
    int64_t finished = 0;
    for (int64_t i; (i = next.fetch_add(1)) < count; ++finished) task(i);
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
      mine->run();
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

void Parts::add(int64_t total, int64_t size) {
  firsts_.push_back(std::min(firsts_.back() + std::max<int64_t>(size, 1), total));
}

Parts Parts::equal(int64_t total, int64_t size) {
  Parts parts;
  while (parts.firsts_.back() < total) parts.add(total, size);
  return parts;
}

Parts Parts::large_first(int64_t total, int64_t threads) {
  Parts parts;
  for (int64_t i = 0; i < threads; ++i) parts.add(total, total * 7 / (8 * threads) / 4 * 4);
  while (parts.firsts_.back() < total) parts.add(total, total / (16 * threads) / 4 * 4);
  return parts;
}

void run_all(xla::ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> task,
             Wait wait) {
  auto work = std::make_shared<Work>();
  work->task = std::move(task);
  work->count = count;
  int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  if (wait == Wait::kActively) {
    for (int i = 0; i < kSeats && helpers > 0; ++i) helpers -= seats()[i].offer(work);
  }
  for (; helpers > 0; --helpers) {
    pool.Schedule([work, wait] {
      work->run();
      if (wait == Wait::kActively) wait_for_work();
    });
  }
  work->run();
  if (wait == Wait::kActively && wait_actively([&] { return work->is_done(); })) return;
  std::unique_lock<std::mutex> lock(work->mutex);
  work->all_done.wait(lock, [&] { return work->is_done(); });
}

}  // namespace bitttt
