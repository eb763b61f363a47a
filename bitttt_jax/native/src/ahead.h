// Fetching what the next call reads while a thread has nothing to do.
//
// A model makes the same calls in the same order for every token, and between two of them memory
// would lie idle. So each call that reads much memory says where, the call after it is remembered,
// and a thread that waits for it brings the start of its own part into its second cache. A wrong
// guess costs a little bandwidth and nothing else: fetching never faults.

#pragma once

#include <cstdint>

namespace bitttt {

// Memory that the tasks of a call read, in their order.
struct Reads {
  static constexpr int kMost = 4;

  struct Part {
    const char* data;
    int64_t bytes;
  } parts[kMost];
  int count = 0;

  // What doesn't fit any more isn't known to the threads that wait.
  void add(const void* data, int64_t bytes) {
    if (count < kMost) parts[count++] = {static_cast<const char*>(data), bytes};
  }
};

// Notes that a call reads this; returns what the call after it read the last time.
Reads note_reads(const Reads& reads);

// Where a thread has got to in fetching the beginning of its part of the next call's memory.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const Reads& next, int64_t thread, int64_t threads);

  // Fetches a little; false if there is nothing left to fetch.
  bool fetch();

 private:
  Reads next_;
  int part_ = 0;
  int64_t at_ = 0, left_ = 0;
};

}  // namespace bitttt
