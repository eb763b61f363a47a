// Work spread over XLA's own threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "ahead.h"
#include "xla/ffi/api/ffi.h"

namespace bitttt {

// Whether threads wait actively for a moment: the calling one for the others, those for the next
// call. Waking a thread takes longer than a small product, but while one waits actively nothing
// else can use its core.
enum class Wait { kAsleep, kActively };

// Runs task(0) to task(count - 1) on the pool's threads and on this one. Each thread goes through
// tasks that follow one another, so that tasks beside each other should use memory side by side;
// one that is done helps the others from their ends. A helper that the pool starts late finds
// nothing left to do: nobody ever waits for a task that hasn't begun, so calls that occupy all of
// the pool's threads can't block each other. What the tasks read much of, `reads`, is fetched ahead
// of the call the next time by the threads that wait for it.
void run_all(xla::ffi::ThreadPool& pool, int64_t count, std::function<void(int64_t)> task,
             Wait wait = Wait::kAsleep, const Reads& reads = {});

// A thread's working memory, kept for its next call.
template <typename T>
T* scratch(int64_t count) {
  static thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < count) memory.resize(count);
  return memory.data();
}

}  // namespace bitttt
