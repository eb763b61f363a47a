#include "ahead.h"

#include <algorithm>
#include <atomic>
#include <functional>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace bitttt {
namespace {

constexpr int64_t kEntries = 4096;
constexpr int64_t kLine = 64, kAtOnce = 8 * kLine;

// What followed a call. Threads may read an entry while another writes it: they would fetch the
// wrong memory.
struct Entry {
  std::atomic<const char*> call{nullptr};
  std::atomic<int> count{0};
  std::atomic<const char*> data[Reads::kMost];
  std::atomic<int64_t> bytes[Reads::kMost];
};

Entry& entry_of(const char* call) {
  static Entry entries[kEntries];
  const auto number = reinterpret_cast<uintptr_t>(call) / kLine;
  return entries[number * 0x9E3779B97F4A7C15u >> 52];
}

// Half of the second cache: the rest is for what runs until the next call.
int64_t most_bytes() {
  static const int64_t most = [] {
    int64_t cache = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return (cache > 0 ? cache : 256 * 1024) / 2;
  }();
  return most;
}

}  // namespace

Reads note_reads(const Reads& reads) {
  static std::atomic<const char*> latest{nullptr};
  const char* call = reads.parts[0].data;
  if (const char* before = latest.exchange(call, std::memory_order_relaxed)) {
    Entry& entry = entry_of(before);
    entry.call.store(before, std::memory_order_relaxed);
    entry.count.store(reads.count, std::memory_order_relaxed);
    for (int i = 0; i < reads.count; ++i) {
      entry.data[i].store(reads.parts[i].data, std::memory_order_relaxed);
      entry.bytes[i].store(reads.parts[i].bytes, std::memory_order_relaxed);
    }
  }
  Reads next;
  const Entry& entry = entry_of(call);
  if (entry.call.load(std::memory_order_relaxed) != call) return next;
  const int count = entry.count.load(std::memory_order_relaxed);
  for (int i = 0; i < count; ++i) {
    next.add(entry.data[i].load(std::memory_order_relaxed),
             entry.bytes[i].load(std::memory_order_relaxed));
  }
  return next;
}

Ahead::Ahead(const Reads& next, int64_t thread, int64_t threads) : next_(next) {
  int64_t total = 0;
  for (int i = 0; i < next.count; ++i) total += next.parts[i].bytes;
  at_ = total * thread / threads;
  left_ = std::min(total * (thread + 1) / threads - at_, most_bytes());
  for (; part_ < next.count && at_ >= next.parts[part_].bytes; ++part_) {
    at_ -= next.parts[part_].bytes;
  }
}

bool Ahead::fetch() {
  if (left_ <= 0 || part_ >= next_.count) return false;
  const Reads::Part& part = next_.parts[part_];
  const int64_t end = std::min(at_ + std::min(kAtOnce, left_), part.bytes);
  for (int64_t i = at_; i < end; i += kLine) __builtin_prefetch(part.data + i, 0, 2);
  left_ -= end - at_;
  at_ = end;
  if (at_ >= part.bytes) {
    ++part_;
    at_ = 0;
  }
  return true;
}

}  // namespace bitttt
